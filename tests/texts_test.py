import pytest

from dvq_jax import texts
from dvq_jax.errors import InputError


@pytest.mark.parametrize('chunk', [3, 2**24])
@pytest.mark.parametrize('end', ['', '\n'])
def test_reads_rows(tmp_path, monkeypatch, chunk, end):
    monkeypatch.setattr(texts, '_CHUNK', chunk)
    path = tmp_path / 't.tsv'
    path.write_text('a\tone\nb\t zwei, für \tTitle\r\nc\tthree' + end, encoding='utf-8')
    found = texts.Texts(path)
    assert len(found) == 3
    assert found.read(slice(0, 3)) == ['one', 'zwei, für Title', 'three']
    assert found.read(slice(1, 2)) == ['zwei, für Title']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'a\tone\nb\n', 'line 2 has no text'),
        (b'a\t \n', 'line 1 has no text'),
        (b'a\t\xff\n', 'line 1 is not UTF-8'),
    ],
)
def test_a_line_without_a_text_is_named(tmp_path, content, message):
    path = tmp_path / 't.tsv'
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        texts.Texts(path).read(slice(0, content.count(b'\n')))


def test_a_file_must_hold_something(tmp_path):
    with pytest.raises(InputError, match='cannot be read'):
        texts.Texts(tmp_path / 't.tsv')
    (tmp_path / 't.tsv').touch()
    with pytest.raises(InputError, match='is empty'):
        texts.Texts(tmp_path / 't.tsv')
