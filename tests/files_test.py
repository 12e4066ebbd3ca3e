import hashlib

import pytest

from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / 'sub' / 'file'
    with files.atomic_file(path) as aside:
        aside.write_text('old')
    with pytest.raises(KeyError), files.atomic_file(path) as aside:
        aside.write_text('half')
        raise KeyError
    assert path.read_text() == 'old' and list(path.parent.iterdir()) == [path]


def test_two_may_write_the_same_file_at_once(tmp_path):
    with files.atomic_file(tmp_path / 'file', contested=True) as one:
        one.write_text('one')
        with files.atomic_file(tmp_path / 'file', contested=True) as other:
            other.write_text('other')
        assert (tmp_path / 'file').read_text() == 'other'
    assert (tmp_path / 'file').read_text() == 'one' and len(list(tmp_path.iterdir())) == 1


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / 'out') as aside:
        (aside / 'file').write_text('half')
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_is_not_overwritten(tmp_path):
    (tmp_path / '.out.partial').mkdir()
    (tmp_path / '.out.partial' / 'rest').write_text('of a killed process')
    with files.atomic_folder(tmp_path / 'out') as aside:
        (aside / 'file').write_text('whole')
        assert not (tmp_path / 'out').exists()
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['file']
    with pytest.raises(InputError, match='exists already'), files.atomic_folder(tmp_path / 'out'):
        pass


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot write there'):
        files.make_folder(tmp_path / 'file' / 'folder')


def test_sha256(tmp_path):
    (tmp_path / 'file').write_bytes(b'x' * 100_000)
    assert files.sha256(tmp_path / 'file') == hashlib.sha256(b'x' * 100_000).hexdigest()


def test_progress_says_how_far_and_ends_once(capsys):
    progress = Progress('encode', total=10, unit='documents', start=4, every=0.0)
    progress.add(3)
    progress.add(3, note='loss 1')
    progress.done()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('encode: 7/10 documents (70%)') and 'to go' in lines[0]
    assert '10/10 documents (100%)' in lines[1] and lines[1].endswith('in all; loss 1')


def test_work_that_was_quick_ends_without_a_line(capsys):
    quick = Progress('encode', total=10, unit='documents')
    quick.add(10)
    quick.end()
    assert not capsys.readouterr().err
    slow = Progress('encode', total=10, unit='documents', every=0.0)
    slow.add(7)
    slow._every = 60.0
    slow.add(3)
    slow.end()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and '10/10 documents (100%)' in lines[1]
