import hashlib
import os
import socket
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import screened, teacher
from dvq_jax.errors import InputError


def brute_force(corpus, queries, k):
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    ids = np.argsort(-scores, axis=1, kind='stable')[:, :k]  # stable: ties by lowest row
    return ids, np.take_along_axis(scores, ids, axis=1)


def whole_numbers(seed, rows, dim, largest=2):
    """Vectors whose inner products are exact and tie often."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, size=(rows, dim)).astype(np.float32)


WAYS = ['BLAS', 'BLAS, screened', 'XLA', 'XLA, screened']


@pytest.fixture(params=WAYS)
def devices(request, monkeypatch):
    """What a host without accelerators computes on by itself, two ways, and what accelerators do."""
    monkeypatch.setattr(screened, 'pays', lambda *_: request.param.endswith('screened'))
    return jax.local_devices() if request.param.startswith('XLA') else None


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('k', [1, 7, 50, 997])
@pytest.mark.parametrize('corpus_block', [100, 10_000])
def test_mine_is_brute_force_with_ties_by_lowest_row(dtype, k, corpus_block, devices):
    corpus, queries = whole_numbers(0, 997, 4).astype(dtype), whole_numbers(1, 33, 4).astype(dtype)
    blocks = {'query_block': 20, 'corpus_block': corpus_block}
    ids, scores = teacher.mine(corpus, queries, k, devices=devices, **blocks)
    expected_ids, expected_scores = brute_force(corpus, queries, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (ids.dtype, scores.dtype) == (np.int32, np.float32)


def test_mine_when_all_documents_tie_and_none_scores_above_zero(devices):
    corpus, queries = np.full((500, 3), -1, np.float32), np.ones((2, 3), np.float32)
    ids, scores = teacher.mine(corpus, queries, 20, corpus_block=130, devices=devices)
    np.testing.assert_array_equal(ids, [range(20)] * 2)
    np.testing.assert_array_equal(scores, np.full((2, 20), -3))


def test_mine_when_every_document_beats_all_before_it(devices):
    corpus, queries = np.arange(700, dtype=np.float32)[:, None], np.array([[1], [-1]], np.float32)
    ids, scores = teacher.mine(corpus, queries, 5, corpus_block=90, devices=devices)
    np.testing.assert_array_equal(ids, [[699, 698, 697, 696, 695], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(scores, [[699, 698, 697, 696, 695], [0, -1, -2, -3, -4]])


@pytest.mark.parametrize('by', WAYS[:3])  # by XLA each shape is compiled
@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 300), count=st.integers(1, 20), share=st.floats(0, 1), seed=st.integers(0, 99),
    corpus_block=st.sampled_from([1, 16, 64, 1000]), query_block=st.sampled_from([1, 7, 1000]),
)  # fmt: skip
def test_mine_is_brute_force_for_any_shape(by, rows, count, share, seed, corpus_block, query_block):
    corpus, queries = whole_numbers(seed, rows, 3, largest=1), whole_numbers(seed + 100, count, 3)
    k = 1 + int(share * (rows - 1))
    corpus_block = max(corpus_block, rows // 5)  # bounds the time, not the shapes
    query_block = max(query_block, count // 3)
    blocks = {'query_block': query_block, 'corpus_block': corpus_block}
    devices = jax.local_devices() if by.startswith('XLA') else None
    with mock.patch.object(screened, 'pays', lambda *_: by.endswith('screened')):
        ids, _ = teacher.mine(corpus, queries, k, devices=devices, **blocks)
    np.testing.assert_array_equal(ids, brute_force(corpus, queries, k)[0])


def test_mine_real_valued_scores_are_close(devices):
    rng = np.random.default_rng(0)
    corpus = rng.normal(size=(4000, 64)).astype(np.float16)
    queries = rng.normal(size=(300, 64)).astype(np.float32)
    ids, scores = teacher.mine(corpus, queries, 100, query_block=128, corpus_block=1500, devices=devices)
    _, expected = brute_force(corpus, queries, 100)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    exact = np.einsum('qd,qkd->qk', queries.astype(np.float64), corpus[ids].astype(np.float64))
    np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == 100 for row in ids.tolist())


@pytest.mark.parametrize('k', [0, 6])
def test_mine_rejects_k(k):
    with pytest.raises(InputError, match=f'top {k} of 5 documents'):
        teacher.mine(np.ones((5, 2), np.float32), np.ones((1, 2), np.float32), k)


def test_mine_goes_on_from_its_cache(tmp_path, capsys):
    corpus, queries = whole_numbers(0, 300, 8), whole_numbers(1, 90, 8)
    plain = teacher.mine(corpus, queries, 9, query_block=30)
    teacher.mine(corpus, queries, 9, query_block=30, cache=tmp_path)
    first, second, third = sorted(tmp_path.iterdir())
    second.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (first, third)}
    capsys.readouterr()
    again = teacher.mine(corpus, queries, 9, query_block=30, cache=tmp_path)
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {path: path.stat().st_mtime_ns for path in (first, third)} == kept
    assert sorted(tmp_path.iterdir()) == [first, second, third]
    assert 'mine: 27000/27000 scores (100%)' in capsys.readouterr().err


def test_mine_does_not_take_another_inputs_cache(tmp_path):
    corpus, queries = whole_numbers(0, 300, 8), whole_numbers(1, 9, 8)
    teacher.mine(corpus, queries, 9, cache=tmp_path)
    for docs, vectors, k in [(corpus[::-1], queries, 9), (corpus, queries + 1, 9), (corpus, queries, 8)]:
        ids, _ = teacher.mine(docs, vectors, k, cache=tmp_path)
        np.testing.assert_array_equal(ids, brute_force(docs, vectors, k)[0])


_ON_DEVICES = """
import hashlib, jax, numpy as np
from dvq_jax import teacher
rng = np.random.default_rng(0)
corpus, queries = (rng.normal(size=(n, 48)).astype(np.float32) for n in (3000, 700))
for count in (1, 3, 8):
    found = teacher.mine(corpus, queries, 50, devices=jax.local_devices()[:count], corpus_block=1200)
    print(count, hashlib.sha256(b''.join(x.tobytes() for x in found)).hexdigest())
"""


def test_mine_gives_the_same_bytes_on_any_number_of_devices():
    env = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', _ON_DEVICES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    counts, digests = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert counts == ('1', '3', '8')
    assert len(set(digests)) == 1
    assert all(len(digest) == hashlib.sha256().digest_size * 2 for digest in digests)


_ON_PROCESSES = """
import hashlib, sys, jax, numpy as np
from dvq_jax import teacher
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
rng = np.random.default_rng(0)
corpus, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (500, 90))
settings = {'query_block': 30, 'devices': jax.local_devices()}
alone = teacher.mine(corpus, queries, 9, **settings)
calls, search = [], teacher.Mining.__call__
teacher.Mining.__call__ = lambda work, *block: calls.append(block[0]) or search(work, *block)
shared = teacher.mine(corpus, queries, 9, cache=sys.argv[3], **settings)
print(calls, all(np.array_equal(*pair) for pair in zip(alone, shared, strict=True)))
"""


def test_processes_that_see_one_cache_share_the_blocks(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    started = [
        subprocess.Popen(
            [sys.executable, '-c', _ON_PROCESSES, address, str(number), str(tmp_path)],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [out.splitlines()[-1:] for out, _ in said] == [['[0, 2] True'], ['[1] True']], said
