"""How fast we are, against those who do the same; ratios within one run.

python benchmarks/speed.py --corpus=docs.npy --queries=queries.npy --dataset=DATASET \
    --out=docs/results/speed.json

Every part that is finished is stored; --parts runs some, and --report_only prints the tables of those that
are there, and how near our side comes to its floor, by what the device was seen to do at most before the part
(`floors`). Sides are timed in turn after a first round that does not count, and medians are compared. The
step of the peers needs PyTorch, the parts 'choosing', 'once' and 'input' a dataset that `prepare` wrote.
"""

import importlib.metadata
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout
# Some parts have processes of their own, which need some of an accelerator's memory beside this one.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import floors
import jax
import ml_collections
import numpy as np
import speed_choosing
import speed_clustering
import speed_corpus
import speed_input
import speed_report
import speed_scaling
import speed_search
import speed_step
from absl import flags

from configs import default
from dvq_jax import cli, files, host, teacher
from dvq_jax.candidates import parse_mixture
from dvq_jax.data import gather, open_embeddings
from dvq_jax.dataset import open_dataset
from dvq_jax.errors import InputError

_CORPUS = flags.DEFINE_string('corpus', None, 'Document embeddings.')
_QUERIES = flags.DEFINE_string('queries', None, 'Query embeddings.')
_DATASET = flags.DEFINE_string('dataset', None, "What `prepare` wrote; for 'choosing', 'once', 'input'.")
_PARTS = flags.DEFINE_list('parts', list(speed_report.TABLES), 'What to measure.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Of each side.')
_LISTS = flags.DEFINE_integer('lists', 1024, 'L.')
_MINED_DOCUMENTS = flags.DEFINE_integer(
    'mined_documents', 1_000_000, "N of 'large_mining', 1.5 KB each in the folder for temporary files."
)
_SCALING_SIZES = flags.DEFINE_list('scaling_sizes', ['10000', '100000', '1000000', '10000000'], 'N.')
_SCALING_DIM = flags.DEFINE_integer('scaling_dim', 64, 'D of the corpora that grow.')
_OUT = flags.DEFINE_string('out', 'docs/results/speed.json', 'The numbers, JSON.')
_REPORT_ONLY = flags.DEFINE_bool('report_only', False, 'Run nothing, and print the tables.')

_SAMPLE = 32_768  # documents that k-means and OPQ are fitted to
_MINED = (2500, 32_768)  # queries, at most
_COPIES, _MINED_OF_COPIES = 12, 8192  # of the corpus, and queries that are mined in it
_SEARCHED = 4096  # queries, at most
_MIXTURES = ('top100:16+ib', 'top200+ib')
_SHAPES = ((16, 256), (32, 16))  # M and K, 16 bytes a document both


def _machine() -> dict[str, str]:
    """The processor, the device that JAX takes, and the packages that are compared."""
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    packages = ('jax', 'jaxlib', 'numpy', 'faiss-cpu', 'scann', 'torch')
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    return {
        'cpu': models[0] if models else 'unknown',
        'amx': 'yes' if host.has_matrix_units() else 'no',
        'device': jax.devices()[0].device_kind,
        **{name: installed[name] for name in packages if name in installed},
    }


def _read(flag: flags.FlagHolder) -> np.ndarray:
    if not flag.value:
        raise InputError(f'--{flag.name} is not given; give it, --parts without it, or --report_only.')
    vectors = open_embeddings(flag.value)
    return gather(vectors, np.arange(len(vectors)))


def _step() -> list[dict[str, Any]]:
    sizes = {'dims': [384, 768], 'books': [16, 48, 96], 'candidates': [8, 32], 'batch_size': 128}
    return speed_step.measure(**sizes, repeats=_REPEATS.value)


def _large_step() -> list[dict[str, Any]]:
    sizes = {'dim': 768, 'codebooks': 64, 'lists': 10_000, 'candidates': 200, 'batch_size': 128}
    return speed_step.measure_large(**sizes, repeats=_REPEATS.value)


def _mining() -> list[dict[str, Any]]:
    docs, queries = _read(_CORPUS), _read(_QUERIES)
    rows = [
        speed_corpus.mining(docs, queries[:count], topk=200, repeats=_REPEATS.value)
        for count in sorted({min(count, len(queries)) for count in _MINED})
    ]
    grown, some = speed_corpus.perturbed(docs, _COPIES), queries[:_MINED_OF_COPIES]
    return [*rows, speed_corpus.mining(grown, some, topk=200, repeats=max(1, _REPEATS.value // 3))]


def _large_mining() -> list[dict[str, Any]]:
    sizes = {'documents': _MINED_DOCUMENTS.value, 'dim': 768, 'queries': teacher.QUERY_BLOCK, 'topk': 200}
    return [speed_corpus.large_mining(**sizes, repeats=_REPEATS.value)]


def _encoding() -> list[dict[str, Any]]:
    docs, settings = _read(_CORPUS), {'lists': _LISTS.value, 'repeats': _REPEATS.value}
    return [speed_corpus.encoding(docs, codebooks=books, **settings) for books in (16, 48)]


def _clustering() -> list[dict[str, Any]]:
    docs = _read(_CORPUS)
    rows = np.random.default_rng(0).choice(len(docs), min(_SAMPLE, len(docs)), replace=False)
    settings = {'lists': _LISTS.value, 'codebooks': 16, 'iterations': 20, 'pq_iterations': 10}
    return speed_clustering.measure(docs[np.sort(rows)], **settings, repeats=_REPEATS.value)


def _search() -> list[dict[str, Any]]:
    docs, queries = _read(_CORPUS), _read(_QUERIES)[:_SEARCHED]
    settings = {'lists': _LISTS.value, 'nprobe': [10, 100], 'k': 100, 'repeats': _REPEATS.value}
    settings['cores'] = sorted({1, len(os.sched_getaffinity(0))})
    measured = (
        speed_search.measure(docs, queries, codebooks=books, codewords=words, **settings)
        for books, words in _SHAPES
    )
    return [row for rows in measured for row in rows]


def _scaling() -> list[dict[str, Any]]:
    sizes = [int(size) for size in _SCALING_SIZES.value]
    return speed_scaling.scaling(sizes=sizes, dim=_SCALING_DIM.value, repeats=_REPEATS.value)


def _devices() -> list[dict[str, Any]]:
    return speed_scaling.devices(counts=[1, 2, 4, 8], dim=384, batch_size=128, repeats=_REPEATS.value)


def _default() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.dataset = _DATASET.value
    return config


def _choosing() -> list[dict[str, Any]]:
    return [speed_choosing.measure(_default(), repeats=_REPEATS.value)]


def _once() -> list[dict[str, Any]]:
    topk = open_dataset(_DATASET.value).topk
    some = [text for text in _MIXTURES if parse_mixture(text).top_k <= topk]
    return [speed_input.measure_once(_default(), text, repeats=_REPEATS.value) for text in some]


def _input() -> list[dict[str, Any]]:
    return [speed_input.measure(_default(), batches=100, repeats=_REPEATS.value)]


_MEASURES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    'step': _step,
    'large_step': _large_step,
    'mining': _mining,
    'large_mining': _large_mining,
    'encoding': _encoding,
    'choosing': _choosing,
    'clustering': _clustering,
    'search': _search,
    'scaling': _scaling,
    'devices': _devices,
    'once': _once,
    'input': _input,
}


def _run_parts(stored: dict[str, Any], out: pathlib.Path) -> None:
    """Measures the parts asked for, and stores each."""
    unknown = [part for part in _PARTS.value if part not in _MEASURES]
    if unknown:
        raise InputError(f'--parts: {unknown[0]!r} is unknown; use some of {", ".join(_MEASURES)}.')
    machine = _machine()
    if stored.setdefault('machine', machine) != machine:
        raise InputError(f'{out}: was measured on {stored["machine"]}; give another --out.')
    for part in _PARTS.value:
        if part in ('choosing', 'once', 'input') and not _DATASET.value:
            print(f'the part {part!r} is left out: it needs --dataset, which is not given', file=sys.stderr)
            continue
        about = {'cores': os.cpu_count(), 'repeats': _REPEATS.value, 'peaks': floors.peaks()}
        stored[part] = {**about, 'rows': _MEASURES[part]()}
        with files.atomic_file(out) as aside:
            aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')


def main() -> dict[str, Any] | None:
    """Measures the parts asked for and prints all, or prints the tables of what is stored."""
    out = pathlib.Path(_OUT.value)
    stored = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    if not _REPORT_ONLY.value:
        _run_parts(stored, out)
        return stored
    if not stored:
        raise InputError(f'{out}: holds no results; run without --report_only.')
    print(speed_report.markdown(stored))
    return None


if __name__ == '__main__':
    cli.run(main)
