"""From a file of documents and one of queries to answers, through the command line."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import dvq_jax
from dvq_jax.errors import InputError
from tests.embed_test import write_texts
from tests.huggingface_test import write_encoder

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    'data.batch_size': 8, 'index.lists': 8, 'index.codebooks': 4, 'index.codewords': 16,
    'initialize.opq_iterations': 1, 'initialize.coarse_iterations': 2, 'initialize.pq_iterations': 1,
    'routing.rounds': 1, 'candidates': 'top50:4+ib', 'train.steps': 4, 'eval.nprobe': 4,
}  # fmt: skip


def command(name, *arguments, devices=1):
    flags = f'--xla_force_host_platform_device_count={devices}'
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
    return subprocess.run(
        [sys.executable, '-m', f'dvq_jax.cli.{name}', *arguments],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=300,
    )  # fmt: skip


def succeed(name, *arguments):
    done = command(name, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """An index with its encoder, and all that it was made of."""
    folder = tmp_path_factory.mktemp('text')
    write_encoder(folder / 'E', sentence={'pooling': 'mean_tokens', 'normalize': True})
    write_texts(folder / 'docs.tsv', 400)
    write_texts(folder / 'queries.tsv', 120)
    texts, out = (
        ','.join(str(folder / f'{name}.{kind}') for name in ('docs', 'queries')) for kind in ('tsv', 'npy')
    )
    succeed('encode', f'--model={folder / "E"}', f'--text={texts}', f'--out={out}', '--dtype=float32')
    files = [f'--corpus={folder / "docs.npy"}', f'--corpus_ids={folder / "docs.tsv"}']
    files += [f'--queries={folder / "queries.npy"}', f'--query_ids={folder / "queries.tsv"}']
    succeed('prepare', *files, '--topk=50', f'--out={folder / "DATASET"}')
    settings = [f'--config.{name}={value}' for name, value in SMALL.items()]
    settings += [f'--config.data.dataset={folder / "DATASET"}']
    succeed('train', '--config=configs/default.py', f'--workdir={folder / "W"}', *settings)
    export = [f'--workdir={folder / "W"}', '--step=best', f'--encoder={folder / "E"}']
    succeed('export', *export, f'--out={folder / "INDEX"}')
    return folder


def test_text_finds_what_its_embedding_finds(folder):
    common = [f'--index={folder / "INDEX"}', '--k=5', '--nprobe=4']
    succeed('search', *common, f'--text={folder / "queries.tsv"}', f'--out={folder / "text.trec"}')
    vectors = [f'--queries={folder / "queries.npy"}', f'--query_ids={folder / "queries.tsv"}']
    succeed('search', *common, *vectors, f'--out={folder / "vectors.trec"}')
    found = [
        [tuple(line.split()[:4]) for line in (folder / name).read_text().splitlines()]
        for name in ('text.trec', 'vectors.trec')
    ]
    assert len(found[0]) == len(found[1]) == 600
    assert np.mean([a == b for a, b in zip(*found, strict=True)]) > 0.99  # but for ties


def test_an_index_answers_in_python(folder):
    index = dvq_jax.open_index(folder / 'INDEX')
    text = (folder / 'docs.tsv').read_text().splitlines()[7].split('\t')[1]
    np.testing.assert_allclose(index.embed([text])[0], np.load(folder / 'docs.npy')[7], atol=1e-5)
    scores, ids = index.search_text([text], k=3, nprobe=8)
    wanted, names = index.search(np.load(folder / 'docs.npy')[7:8], k=3, nprobe=8)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert ids.tolist() == names.tolist()
    for texts in ('the list', [3]):
        with pytest.raises(InputError, match='give a list of strings'):
            index.search_text(texts)


def test_a_question_is_answered_with_texts(folder):
    documents, question = folder / 'docs.tsv', 'the list of a query'
    asked = [f'--index={folder / "INDEX"}', f'--documents={documents}', f'--question={question}']
    done = command('ask', *asked, '--nprobe=8')
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])['answers'][question]
    _, ids = dvq_jax.open_index(folder / 'INDEX').search_text([question], k=5, nprobe=8)
    texts = dict(line.split('\t') for line in documents.read_text().splitlines())
    assert [(answer['id'], answer['text']) for answer in answers] == [(name, texts[name]) for name in ids[0]]
    assert f'        {texts[ids[0][0]][:100]}' in done.stdout.splitlines()
    (folder / 'others.tsv').write_text('x\ttext\n')
    others = f'--documents={folder / "others.tsv"}'
    refused = command('ask', asked[0], others, '--question=the list', '--nprobe=8')
    assert refused.returncode == 2 and 'others.tsv: has no document' in refused.stderr


def test_files_of_the_encoder_may_be_read_by_those_who_may_read_the_index(folder):
    modes = {path.stat().st_mode for path in (folder / 'INDEX').rglob('*') if path.is_file()}
    assert len(modes) == 1


def test_documents_are_added_and_the_encoder_stays(folder, tmp_path):
    np.save(tmp_path / 'new.npy', np.load(folder / 'docs.npy')[:3])
    (tmp_path / 'new.tsv').write_text('n0\nn1\nn2\n')
    new = [f'--corpus={tmp_path / "new.npy"}', f'--corpus_ids={tmp_path / "new.tsv"}']
    succeed('add', f'--index={folder / "INDEX"}', *new, f'--out={tmp_path / "NEW"}')
    ours, theirs = dvq_jax.open_index(tmp_path / 'NEW'), dvq_jax.open_index(folder / 'INDEX')
    np.testing.assert_array_equal(ours.embed(['the list']), theirs.embed(['the list']))


def test_an_index_without_an_encoder_says_so(folder, tmp_path):
    succeed('export', f'--workdir={folder / "W"}', f'--out={tmp_path / "INDEX"}')
    with pytest.raises(InputError, match='has no text encoder; export it with --encoder'):
        dvq_jax.open_index(tmp_path / 'INDEX').search_text(['the list'])


def test_a_changed_encoder_is_not_opened(folder, tmp_path):
    succeed('export', f'--workdir={folder / "W"}', f'--encoder={folder / "E"}', f'--out={tmp_path / "INDEX"}')
    config = tmp_path / 'INDEX' / 'encoder' / 'config.json'
    config.write_text(config.read_text().replace('gelu', 'relu'))
    with pytest.raises(InputError, match=r'encoder/config\.json: its SHA-256'):
        dvq_jax.open_index(tmp_path / 'INDEX')
    config.write_text(config.read_text().replace('relu', 'gelu'))
    dvq_jax.open_index(tmp_path / 'INDEX')
    (config.parent / 'tokenizer.json').write_text('{}')  # would be taken for the vocabulary that is listed
    with pytest.raises(InputError, match=r'tokenizer\.json: is not what'):
        dvq_jax.open_index(tmp_path / 'INDEX')


def test_what_does_not_fit_is_refused(folder, tmp_path):
    write_encoder(tmp_path / 'E', hidden_size=32)
    both = [f'--queries={folder / "queries.npy"}', f'--text={folder / "queries.tsv"}']
    refused = command('search', f'--index={folder / "INDEX"}', *both, f'--out={tmp_path / "run"}')
    assert refused.returncode == 2 and 'give --queries, perhaps with --query_ids, or --text' in refused.stderr
    refused = command('export', f'--workdir={folder / "W"}', '--pooling=cls', f'--out={tmp_path / "I"}')
    assert refused.returncode == 2 and '--pooling is of --encoder, which is not given' in refused.stderr
    texts = [f'--model={folder / "E"}', f'--text={folder / "queries.tsv"}']
    refused = command('encode', *texts, f'--out={tmp_path / "x.npz"}')
    assert refused.returncode == 2 and 'embeddings are written as .npy' in refused.stderr
    refused = command(
        'export', f'--workdir={folder / "W"}', f'--encoder={tmp_path / "E"}', f'--out={tmp_path / "I"}'
    )
    assert refused.returncode == 2 and 'is of shape' in refused.stderr and not (tmp_path / 'I').exists()
