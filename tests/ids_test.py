import os
import re
import threading

import numpy as np
import pytest

from dvq_jax import ids
from dvq_jax.errors import InputError


def test_ids_are_the_first_column(tmp_path):
    (tmp_path / 'ids.tsv').write_bytes('a\tx y\nb\r\n\u00e9\ty\tz'.encode())
    opened = ids.open_ids(tmp_path / 'ids.tsv', 3)
    assert list(opened) == [opened[row] for row in range(3)] == ['a', 'b', 'é']
    assert opened.take(np.array([[2, -1], [0, 2]])).tolist() == [['é', ''], ['a', 'é']]


def test_without_a_file_ids_are_row_numbers():
    opened = ids.open_ids(None, 3)
    assert list(opened) == [opened[row] for row in range(3)] == ['0', '1', '2']


@pytest.mark.parametrize('named', [True, False])
def test_rows_are_counted_as_in_any_sequence(named, tmp_path):
    names = ['0', '1', '22']
    (tmp_path / 'ids.tsv').write_text('0\n1\n22\n')
    opened = ids.open_ids(tmp_path / 'ids.tsv', 3) if named else ids.open_ids(None, 23)
    if not named:
        names = [str(row) for row in range(23)]
    assert opened[-1] == '22' and opened[-len(names)] == '0'
    assert opened[:2] == ['0', '1'] and opened[-2:] == names[-2:] and opened[np.int32(1)] == '1'
    for row in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            opened[row]


def test_a_file_that_changes_is_not_read_on(tmp_path):
    path = tmp_path / 'ids.tsv'
    path.write_text('a\nb\n')
    opened = ids.open_ids(path, 2)
    path.write_text('x\n')
    for read in (lambda: opened[1], lambda: list(opened), lambda: opened.take(np.array([1]))):
        with pytest.raises(InputError, match=r'ids\.tsv: has changed since it was opened; run again'):
            read()


def test_ids_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    writer = threading.Thread(target=(tmp_path / 'pipe').write_text, args=['a\nb\n'])
    writer.start()
    assert list(ids.open_ids(tmp_path / 'pipe', 2)) == ['a', 'b']
    writer.join()


def test_ids_of_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, '_BLOCK', 7)
    monkeypatch.setattr(ids, '_LINES', 3)
    names = [f'd{row * 37}' for row in range(20)]
    (tmp_path / 'ids.tsv').write_text(''.join(f'{name}\ttext of {name}\n' for name in names))
    assert list(ids.open_ids(tmp_path / 'ids.tsv', 20)) == names


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'has 0 ids for 3 embeddings'),
        ('a\nb\n', 'has 2 ids for 3 embeddings'),
        ('a\nb\nc\nd\n', 'has 4 ids for 3 embeddings'),
        ('a\nb\ta\na\tb\n', "line 3 repeats the id 'a'"),
        ('a\n\tb\nc\n', "line 2 has the id ''"),
        ('a\nb c\nd\n', "line 2 has the id 'b c'; ids must be unique words"),
    ],
)
def test_files_of_ids_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / 'ids.tsv').write_text(text)
    with pytest.raises(InputError, match=message):
        ids.open_ids(tmp_path / 'ids.tsv', 3)


def test_ids_whose_hashes_are_the_same_are_not_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, 'hash', len, raising=False)
    (tmp_path / 'ids.tsv').write_text('a\nb\ncc\n')
    assert list(ids.open_ids(tmp_path / 'ids.tsv', 3)) == ['a', 'b', 'cc']
    (tmp_path / 'ids.tsv').write_text('a\nb\nb\n')
    with pytest.raises(InputError, match="line 3 repeats the id 'b'"):
        ids.open_ids(tmp_path / 'ids.tsv', 3)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / 'latin.tsv').write_bytes(b'a\n\xe9\n')
    for path, what in (
        (tmp_path / 'latin.tsv', 'as UTF-8 text (line 2'),
        (tmp_path / 'none.tsv', '(No such file'),
        (tmp_path, '(Is a directory'),
    ):
        with pytest.raises(InputError, match=re.escape(f'{path.name}: cannot be read {what}')):
            ids.open_ids(path, 2)
