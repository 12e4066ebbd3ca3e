"""Installs dvq_jax: `pip install .[test]` and so on; each extra says what it is for."""

import pathlib

import setuptools

EXTRAS = {
    # faiss-cpu: the baselines we are measured against, and the exporter to its file format.
    'faiss': ['faiss-cpu>=1.9'],
    # scikit-learn: the quickstart's teacher (TF-IDF and truncated SVD), so that it needs no model download.
    'quickstart': ['scikit-learn>=1.5'],
    # pyarrow: embeddings in a column of a Parquet file.
    'parquet': ['pyarrow>=16'],
    # safetensors, tokenizers: text encoders in Hugging Face's format, without PyTorch.
    'text': ['safetensors>=0.4', 'tokenizers>=0.20'],
    # apache-beam: mining and encoding on the workers of Dataflow, Flink or Spark.
    'beam': ['apache-beam>=2.70'],
    # matplotlib: the pictures of the benchmarks.
    'benchmarks': ['matplotlib>=3.9', 'faiss-cpu>=1.9'],
    # matplotlib: the pictures of a run's report.
    'report': ['matplotlib>=3.9'],
    # Accelerators: the same code, another jaxlib.
    'cuda': ['jax[cuda12]'],
    'tpu': ['jax[tpu]'],
    # What the test suite needs on top: it covers every extra that runs on a CPU.
    'test': [
        'apache-beam>=2.70',
        'faiss-cpu>=1.9',
        'hypothesis>=6.100',
        'matplotlib>=3.9',
        'pyarrow>=16',
        'pytest>=8',
        'pytest-xdist>=3.6',  # launch/test.sh: two thirds of the time on 2 cores
        'ruff>=0.6',
        'safetensors>=0.4',
        'scikit-learn>=1.5',
        'tokenizers>=0.20',
    ],
}

setuptools.setup(
    name='dvq_jax',
    version='0.1.0',
    description='Distill-VQ in JAX: learn an ANN index from a dense retriever and serve it with ScaNN.',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['dvq_jax', 'dvq_jax.*']),
    install_requires=[
        'absl-py>=2.1',  # flags and logging of the commands
        'array_record>=0.6',  # the training dataset's file format, random access without TensorFlow
        'flax>=0.10',
        'grain>=0.2.11',  # deterministic, resumable input pipeline
        'importlib_resources>=6',  # imported by tensorflow-datasets 4.9.10, which does not declare it
        'ir_measures>=0.4',  # the field's metrics under the field's names
        'jax>=0.8',
        'ml_collections>=1.0',  # configs
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11',
        'scann>=1.4.2',
        'scipy>=1.11',  # sums over clusters on a host, by sparse products; jax needs it too
        'tensorboardX>=2.6',  # TensorBoard event files without TensorFlow
        'tensorflow-datasets>=4.9.10',
        'threadpoolctl>=3.5',  # mining on a host: a BLAS thread for each of ours
    ],
    extras_require=EXTRAS,
)
