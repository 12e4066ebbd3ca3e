import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from dvq_jax import blocks, preemption


class Squares:
    """Row numbers squared, ten at a time; `done` says which blocks were."""

    label, unit = 'square', 'rows'

    def __init__(self, rows=25):
        self.blocks, self.done = blocks.cut(rows, 10), []

    def size(self, number):
        return self.blocks[number].stop - self.blocks[number].start

    def __call__(self, number, progress):
        self.done.append(number)
        progress.add(self.size(number))
        rows = np.arange(self.blocks[number].start, self.blocks[number].stop)
        return {'squares': rows**2}


def whole(parts):
    return np.concatenate([parts[number]['squares'] for number in range(3)]).tolist()


def test_without_parts_all_is_held_in_memory(capsys):
    assert whole(blocks.finish(Squares())) == [row**2 for row in range(25)]
    assert 'square: 25/25 rows (100%)' in capsys.readouterr().err
    blocks.finish(Squares(), quiet=True)
    assert capsys.readouterr().err == ''


def test_finished_blocks_are_not_done_again(tmp_path, capsys):
    work, parts = Squares(), blocks.Parts(tmp_path / 'P', 'a.')
    assert blocks.missing(work, parts) == [0, 1, 2] and not (tmp_path / 'P').exists()
    parts[1] = work(1, blocks.Progress('', total=10, unit=''))
    assert blocks.missing(work, parts) == [0, 2]
    again = Squares()
    assert whole(blocks.finish(again, parts)) == [row**2 for row in range(25)]
    assert again.done == [0, 2] and blocks.missing(work, parts) == []
    assert 'square: 25/25 rows (100%)' in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / 'P').iterdir()) == ['a.0.npz', 'a.1.npz', 'a.2.npz']
    assert blocks.missing(work, blocks.Parts(tmp_path / 'P', 'b.')) == [0, 1, 2]


def test_processes_share_blocks_and_all_ask_as_often_whether_to_end(tmp_path, monkeypatch):
    asked, parts = [], blocks.Parts(tmp_path)
    monkeypatch.setattr(preemption, 'leave_if_noticed', lambda: asked.append(1))
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda failed: np.array([failed, False]))
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    for index, done in ((1, [1]), (1, []), (0, [0, 2])):
        monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
        work = Squares()
        blocks.finish(work, parts)
        assert work.done == done and asked == [1, 1]
        asked.clear()
    assert whole(parts) == [row**2 for row in range(25)]


def test_a_failed_block_leaves_nothing(tmp_path):
    class Half(dict):
        def __iter__(self):
            raise KeyError

        keys = items = __iter__

    parts = blocks.Parts(tmp_path)
    with pytest.raises(KeyError):
        parts[0] = Half()
    assert not list(tmp_path.iterdir())
