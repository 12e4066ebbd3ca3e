import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from dvq_jax import embed, huggingface
from dvq_jax.texts import Texts
from tests.huggingface_test import WORDS, write_encoder

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def encoder(tmp_path):
    write_encoder(tmp_path / 'E', sentence={'pooling': 'mean_tokens', 'normalize': True})
    return huggingface.load(tmp_path / 'E')


def write_texts(path, count=90):
    rng = np.random.default_rng(3)
    lines = [' '.join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(count)]
    path.write_text(''.join(f'd{row}\t{line}\n' for row, line in enumerate(lines)))
    return lines


@pytest.mark.parametrize(
    ('tokens', 'longest', 'expected'),
    [(3, 512, 8), (8, 512, 8), (17, 512, 24), (400, 512, 512), (30, 20, 20), (600, 2048, 1024)],
)
def test_lengths_are_few(tokens, longest, expected):
    assert embed.padded_length(min(tokens, longest), longest) == expected


def test_a_text_has_its_vector_whatever_goes_with_it(tmp_path, encoder, monkeypatch):
    lines = write_texts(tmp_path / 't.tsv')
    monkeypatch.setattr(embed, '_TOKENS_ON_HOST', 64)
    together = embed.Embedder(encoder)(lines)
    alone = np.concatenate([embed.Embedder(encoder)([line]) for line in lines[:5]])
    np.testing.assert_allclose(together[:5], alone, atol=1e-6)
    assert embed.Embedder(encoder)([]).shape == (0, 16)


def test_an_interrupted_file_goes_on_where_it_was(tmp_path, encoder, monkeypatch):
    write_texts(tmp_path / 't.tsv')
    monkeypatch.setattr(embed, '_BLOCK', 20)
    whole, again = tmp_path / 'whole.npy', tmp_path / 'again.npy'
    embed.embed_file(encoder, Texts(tmp_path / 't.tsv'), whole, dtype='float32')
    done, block = [], embed.Embedding.__call__

    def count(work, number, progress):
        if number == stop:
            raise KeyboardInterrupt
        done.append(number)
        return block(work, number, progress)

    monkeypatch.setattr(embed.Embedding, '__call__', count)
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        embed.embed_file(encoder, Texts(tmp_path / 't.tsv'), again, dtype='float32')
    assert not again.exists()
    stop = None
    embed.embed_file(encoder, Texts(tmp_path / 't.tsv'), again, dtype='float32')
    assert done == [0, 1, 2, 3, 4] and whole.read_bytes() == again.read_bytes()
    assert not list(tmp_path.glob('.*'))


def start(folder, out, *extra, devices=1):
    command = [sys.executable, '-m', 'dvq_jax.cli.encode', f'--model={folder / "E"}', f'--out={out}']
    command += [f'--text={folder / "t.tsv"}', *extra]
    flags = f'--xla_force_host_platform_device_count={devices}'
    env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process):
    said = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def encode(folder, out, *extra, devices=1):
    return ended(start(folder, out, *extra, devices=devices))


def test_the_command_gives_the_same_on_more_devices(tmp_path, encoder):
    lines = write_texts(tmp_path / 't.tsv')
    one = encode(tmp_path, tmp_path / 'one.npy')
    assert one.returncode == 0, one.stderr[-2000:]
    assert json.loads(one.stdout)['texts'] == {str(tmp_path / 'one.npy'): len(lines)}
    assert encode(tmp_path, tmp_path / 'four.npy', devices=4).returncode == 0
    assert (tmp_path / 'one.npy').read_bytes() == (tmp_path / 'four.npy').read_bytes()
    vectors = np.load(tmp_path / 'one.npy')
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, embed.Embedder(encoder)(lines), atol=1e-3)
    assert encode(tmp_path, tmp_path / 'two.npy', '--prefix=query: ', '--dtype=float32').returncode == 0
    prefixed = embed.Embedder(encoder)([f'query: {line}' for line in lines])
    np.testing.assert_allclose(np.load(tmp_path / 'two.npy'), prefixed, atol=1e-6)


def test_two_processes_write_the_file_of_one(tmp_path, encoder):
    write_texts(tmp_path / 't.tsv')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        run = [f'--coordinator=127.0.0.1:{probe.getsockname()[1]}', '--num_processes=2']
    both = [start(tmp_path, tmp_path / 'two.npy', *run, f'--process_id={number}') for number in range(2)]
    for done in map(ended, both):
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1])['texts'] == {str(tmp_path / 'two.npy'): 90}
    assert encode(tmp_path, tmp_path / 'one.npy').returncode == 0
    assert (tmp_path / 'one.npy').read_bytes() == (tmp_path / 'two.npy').read_bytes()


def test_the_command_refuses_in_one_sentence(tmp_path, encoder):
    (tmp_path / 't.tsv').write_text('d0\tone\nd1\n')
    refused = encode(tmp_path, tmp_path / 'out.npy')
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith('error: ')
    assert 'line 2 has no text' in refused.stderr and not (tmp_path / 'out.npy').exists()
    refused = encode(tmp_path, 'one.npy,two.npy')
    assert refused.returncode == 2 and '--text names 1 files and --out 2' in refused.stderr
