import functools
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

import dvq_jax.records
from dvq_jax.datasets import collection, msmarco_passage, natural_questions_dpr, pydoc_search, sources
from dvq_jax.errors import InputError
from dvq_jax.texts import Texts

MSMARCO = {
    'collection.tsv': '0\tThe first “passage”.\n1\tA second\u2028 one.\n2\tThird.\n',
    'queries.train.tsv': '11\twhat is first\n12\twithout a label\n',
    'qrels.train.tsv': '11\t0\t0\t1\n11\t0\t2\t1\n11\t0\t1\t0\n',
    'queries.dev.small.tsv': '21\twhat is second\n',
    'qrels.dev.small.tsv': '21\t0\t1\t1\n',
}
QUESTION = {
    'question': 'who was first',
    'answers': ['Ada', 'Ada Lovelace'],
    'positive_ctxs': [{'passage_id': '2'}, {'passage_id': '1'}, {'passage_id': '2'}],
    'hard_negative_ctxs': [{'passage_id': '3', 'text': '], [" \\" é' * 40}],
}
NATURAL_QUESTIONS = {
    'psgs_w100.tsv.gz': 'id\ttext\ttitle\n1\t"The ""first"" one."\t"A ""title"""\n2\tAda.\tProgrammer\n',
    'biencoder-nq-train.json.gz': json.dumps([QUESTION, QUESTION | {'question': 'who else'}], indent=4),
    'biencoder-nq-dev.json.gz': json.dumps([QUESTION]) + '\n',
    'nq-test.qa.csv': 'who sings\t["Ann\'s band"]\nwhat "it" is\t"[\'the \\""big\\"" one\', \'x\']"\n',
}


def write(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (gzip.open if name.endswith('.gz') else open)(folder / name, 'wt', encoding='utf-8').write(text)
    return folder


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a web server on this machine serves, and its address."""
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def publish(folder, address, monkeypatch, contents=MSMARCO):
    """Writes an archive like MS MARCO's, and takes it for the published one."""
    path = folder / 'collectionandqueries.tar.gz'
    with tarfile.open(path, 'w:gz') as archive:
        for name, text in contents.items():
            packed = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
    source = sources.Source(f'{address}/{path.name}', hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(msmarco_passage, 'ARCHIVE', source)
    return path


def built(builder, **kwargs):
    collection.prepare(builder, **kwargs)
    return builder


def records(builder, split):
    """A split as it is read back by TFDS from its folder alone."""
    source = tfds.builder_from_directory(builder.data_path).as_data_source(split)
    return [
        {
            name: [item.decode() for item in value] if isinstance(value, list) else value.decode()
            for name, value in example.items()
        }
        for example in source
    ]


def test_msmarco_is_downloaded_once_and_read_back(tmp_path, served, monkeypatch):
    path = publish(*served, monkeypatch)
    builder = built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'data'))
    assert records(builder, 'documents')[1] == {
        'id': '1',
        'text': 'A second\u2028 one.',
        'title': '',
        'relevant': [],
        'answers': [],
    }
    train = records(builder, 'train')
    assert [(query['id'], query['relevant']) for query in train] == [('11', ['0', '2']), ('12', [])]
    assert [query['relevant'] for query in records(builder, 'dev')] == [['1']]
    path.unlink()  # what is built is not downloaded again
    built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'data'))
    collection.write_texts(builder, write(tmp_path / 'out', {}))
    written = {path.name: path.read_text() for path in (tmp_path / 'out').iterdir()}
    assert written.keys() == {
        *('docs.tsv', 'train_queries.tsv', 'train_qrels.txt', 'dev_queries.tsv', 'dev_qrels.txt')
    }
    assert written['train_qrels.txt'] == '11 0 0 1\n11 0 2 1\n'
    assert Texts(tmp_path / 'out' / 'docs.tsv').all() == ['The first “passage”.', 'A second one.', 'Third.']


def test_a_download_is_the_published_file_or_none(tmp_path, served, monkeypatch):
    path = publish(*served, monkeypatch)
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    builder = msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'data')
    with pytest.raises(InputError, match=r'is not the published collectionandqueries.tar.gz, its MD5 is'):
        collection.prepare(builder)
    path.unlink()
    with pytest.raises(InputError, match=r'cannot be downloaded .*404.*--manual_dir'):
        collection.prepare(builder)
    assert not (tmp_path / 'data' / 'msmarco_passage' / '1.0.0').exists()
    path.write_bytes(good)  # the bad download was not kept
    assert len(records(built(builder), 'documents')) == 3


def test_msmarco_from_the_users_own_folder(tmp_path, monkeypatch):
    manual = write(tmp_path / 'manual', {})
    path = publish(manual, 'http://nowhere', monkeypatch)
    builder = built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'a'), manual_dir=manual)
    assert len(records(builder, 'documents')) == 3
    path.write_bytes(b'other')
    with pytest.raises(InputError, match='put the published file there'):
        built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'b'), manual_dir=manual)
    assert path.read_bytes() == b'other'  # the user's own file stays


def test_large_splits_are_cut_into_files_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(dvq_jax.records, '_SHARD', 3)
    monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 10)  # TFDS's own writer would need TensorFlow
    manual = write(tmp_path / 'manual', {})
    texts = ''.join(f'{row}\ttext {row}\n' for row in range(11))
    publish(manual, 'http://nowhere', monkeypatch, MSMARCO | {'collection.tsv': texts})
    builder = built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'data'), manual_dir=manual)
    assert [document['id'] for document in records(builder, 'documents')] == [str(row) for row in range(11)]
    assert len(list(builder.data_path.glob('*documents*-of-00004'))) == 4
    again = built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'again'), manual_dir=manual)
    for path in builder.data_path.glob('*array_record*'):
        assert path.read_bytes() == (again.data_path / path.name).read_bytes()


@pytest.mark.parametrize(
    ('name', 'text', 'said'),
    [
        ('collection.tsv', '0\tone\n1 two\n', r'collection.tsv: line 2 has not 2 columns'),
        ('queries.train.tsv', '11\t\n', r'queries.train.tsv: line 1 has not 2 columns'),
        ('qrels.train.tsv', '11\t0\t0\tyes\n', r"qrels.train.tsv: line 1 has the relevance 'yes'"),
        ('qrels.dev.small.tsv', None, r'qrels.dev.small.tsv: cannot be read'),
        ('collection.tsv', b'0\tone\n1\t\xff\n', r'collection.tsv: cannot be read as UTF-8'),
        ('queries.train.tsv', '', r'msmarco_passage: train has no texts'),
    ],
)
def test_a_malformed_line_is_named(tmp_path, monkeypatch, name, text, said):
    changed = {key: value for key, value in (MSMARCO | {name: text}).items() if value is not None}
    publish(write(tmp_path / 'manual', {}), 'http://nowhere', monkeypatch, changed)
    with pytest.raises(InputError, match=said):
        built(msmarco_passage.MsmarcoPassage(data_dir=tmp_path / 'data'), manual_dir=tmp_path / 'manual')
    assert not (tmp_path / 'data' / 'msmarco_passage' / '1.0.0').exists()


@pytest.fixture
def unchecked(monkeypatch):
    """Natural Questions without checksums: files of the same form have others."""
    monkeypatch.setattr(natural_questions_dpr, 'PASSAGES', sources.Source('http://nowhere/psgs_w100.tsv.gz'))
    monkeypatch.setattr(
        natural_questions_dpr,
        'QUESTIONS',
        {split: sources.Source(f'http://nowhere/biencoder-nq-{split}.json.gz') for split in ('train', 'dev')},
    )
    monkeypatch.setattr(natural_questions_dpr, '_TEST_QUESTIONS', 2)


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize('chunk', [7, 2**20])
def test_natural_questions(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(natural_questions_dpr, '_CHUNK', chunk)
    manual = write(tmp_path / 'manual', NATURAL_QUESTIONS)
    builder = natural_questions_dpr.NaturalQuestionsDpr(data_dir=tmp_path / 'data')
    built(builder, manual_dir=manual)
    documents = [
        {'id': '1', 'text': 'The "first" one.', 'title': 'A "title"', 'relevant': [], 'answers': []},
        {'id': '2', 'text': 'Ada.', 'title': 'Programmer', 'relevant': [], 'answers': []},
    ]
    assert records(builder, 'documents') == documents
    train = records(builder, 'train')
    assert [(query['id'], query['text']) for query in train] == [
        ('train1', 'who was first'),
        ('train2', 'who else'),
    ]
    assert train[0]['relevant'] == ['2', '1'] and train[0]['answers'] == ['Ada', 'Ada Lovelace']
    assert len(records(builder, 'dev')) == 1
    assert [query['answers'] for query in records(builder, 'test')] == [
        ["Ann's band"],
        ['the "big" one', 'x'],
    ]
    collection.write_texts(builder, write(tmp_path / 'out', {}))
    assert (tmp_path / 'out' / 'docs.tsv').read_text().splitlines()[1] == '2\tProgrammer [SEP]\tAda.'
    assert (tmp_path / 'out' / 'test_answers.tsv').read_text().splitlines()[1] == 'test2\tthe "big" one\tx'
    assert not (tmp_path / 'out' / 'test_qrels.txt').exists()


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('name', 'text', 'said'),
    [
        ('psgs_w100.tsv.gz', '1\ttext\n', 'line 1 is not an id, a text and a title'),
        ('biencoder-nq-dev.json.gz', '[{"question": "x"', 'is cut short or no JSON after question 0'),
        ('biencoder-nq-dev.json.gz', '', 'is cut short or no JSON after question 0'),
        (
            'biencoder-nq-dev.json.gz',
            '[{"question": "x", "answers": []}]',
            "question 1 lacks 'positive_ctxs'",
        ),
        (
            'biencoder-nq-dev.json.gz',
            json.dumps([QUESTION | {'answers': 'Ada'}]),
            'question 1 has no text, or',
        ),
        ('biencoder-nq-dev.json.gz', json.dumps([QUESTION | {'question': ''}]), 'question 1 has no text, or'),
        ('biencoder-nq-dev.json.gz', '[}' + 'x' * 1000, 'is cut short or no JSON after question 0'),
        ('psgs_w100.tsv.gz', '\n', 'line 1 is not an id, a text and a title'),
        ('psgs_w100.tsv.gz', '1\ta\rb\tc\n', 'line 1 is no line of columns'),
        ('nq-test.qa.csv', "who\t'Paris'\n", 'line 1 is not a question and a list of answers'),
        ('nq-test.qa.csv', 'who\t5\n', 'line 1 is not a question and a list of answers'),
        ('nq-test.qa.csv', "\t['Paris']\n", 'line 1 is not a question and a list of answers'),
        ('nq-test.qa.csv', "who\t['Paris']\n", 'has 1 questions and not 2'),
        ('nq-test.qa.csv', 'who\t[]\n', 'line 1 is not a question and a list of answers'),
        ('nq-test.qa.csv', 'who\t__import__("os")\n', 'line 1 is not a question and a list of answers'),
        ('nq-test.qa.csv', 'who\n', 'line 1 is not a question and a list of answers'),
    ],
)
def test_malformed_natural_questions(tmp_path, name, text, said):
    manual = write(tmp_path / 'manual', NATURAL_QUESTIONS | {name: text})
    with pytest.raises(InputError, match=f'{name}: {said}'):
        built(natural_questions_dpr.NaturalQuestionsDpr(data_dir=tmp_path / 'data'), manual_dir=manual)


@pytest.mark.usefixtures('unchecked')
def test_a_gz_that_is_cut_short(tmp_path):
    manual = write(tmp_path / 'manual', NATURAL_QUESTIONS)
    packed = (manual / 'psgs_w100.tsv.gz').read_bytes()
    (manual / 'psgs_w100.tsv.gz').write_bytes(packed[:-12])
    with pytest.raises(InputError, match=r'psgs_w100.tsv.gz: cannot be read'):
        built(natural_questions_dpr.NaturalQuestionsDpr(data_dir=tmp_path / 'data'), manual_dir=manual)


def test_pydoc_search_is_built_anew_for_other_sources(tmp_path):
    code = ''.join(
        f'def f{n}():\n    """Gives the number {n}.\n\n    More."""\n    return {n}\n\n' for n in range(30)
    )
    roots = [write(tmp_path / 'src', {'a.py': code})]
    builder = built(pydoc_search.PydocSearch(roots=roots, data_dir=tmp_path / 'data'))
    documents = records(builder, 'documents')
    assert (documents[3]['id'], documents[3]['text']) == ('a.f3', 'def f3():\n    return 3')
    queries = records(builder, 'train') + records(builder, 'dev')
    assert len(queries) == 30 and {'id': 'a.f3', 'text': 'Gives the number 3.'}.items() <= next(
        query.items() for query in queries if query['id'] == 'a.f3'
    )
    write(roots[0], {'b.py': 'def g():\n    return 1\n'})
    again = built(pydoc_search.PydocSearch(roots=roots, data_dir=tmp_path / 'data'))
    assert [document['id'] for document in records(again, 'documents')][-1] == 'b.g'
