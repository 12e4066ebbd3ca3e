import inspect
import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import data, quantizer
from dvq_jax.datasets import pydoc_search
from dvq_jax.errors import InputError
from dvq_jax.export import scann
from dvq_jax.ids import open_ids
from dvq_jax.types import IndexParams

MODULE = '''
"""The module."""
import functools

@functools.cache
def area(radius, *, café='é'):
    """The area of  a
    circle.

    More text.
    """
    # pi is enough
    def inner():
        """Hidden words."""
        return 3.14159
    return inner() * radius ** 2

class Shape:
    """A shape."""

    def __init__(self):
        """Makes it."""
        self.sides = 0

    @property
    def sides(self): "é"; return self._sides  # one line

    @sides.setter
    def sides(self, value):
        self._sides = value

    def draw(self):
        """Draws it on the screen."""
        raise NotImplementedError

    async def wait(self):
        ...

if True:
    try:
        def parse(text): return int(text)
    except ValueError:
        def parse(text):
            """The area of a circle."""
            return 0
'''


def test_documents_of_a_module():
    functions = pydoc_search.parse(MODULE, module='geometry.flat', path='geometry/flat.py')
    assert [function.name.removeprefix('geometry.flat.') for function in functions] == [
        'area',
        'Shape.sides',
        'Shape.sides',
        'parse',
        'parse',
    ]
    area = functions[0]
    assert area.summary == 'The area of a circle.'
    lines = MODULE.split('\n')
    assert lines[area.line - 1].startswith('def area')
    assert area.code == textwrap.dedent("""\
        @functools.cache
        def area(radius, *, café='é'):
            # pi is enough
            def inner():
                return 3.14159
            return inner() * radius ** 2""")
    assert area.text.count('geometry.flat.area') == 3
    assert functions[1].summary == 'é'
    assert functions[1].code.split('\n')[-1] == '    def sides(self): ; return self._sides  # one line'


def test_names_are_unique_and_bad_files_are_skipped(tmp_path):
    for name in ('geometry', 'geometry/tests', 'geometry/not-a-package'):
        (tmp_path / name).mkdir()
    (tmp_path / 'geometry' / '__init__.py').write_text('def load(x): return x')
    (tmp_path / 'geometry' / 'flat.py').write_text(MODULE)
    (tmp_path / 'geometry' / 'latin.py').write_bytes(b'# coding: latin-1\ndef nom(x): return "\xe9"')
    (tmp_path / 'geometry' / 'tests' / 'flat_test.py').write_text(MODULE)
    (tmp_path / 'geometry' / 'not-a-package' / 'flat.py').write_text(MODULE)
    (tmp_path / 'bytes.py').write_bytes(b'def f(): return "\xff\xfe"')
    (tmp_path / 'syntax.py').write_text('def f(:')
    (tmp_path / 'null.py').write_text('x = 1\0')
    (tmp_path / 'coding.py').write_text('# coding: klingon\n')
    functions, skipped = pydoc_search.read([tmp_path])
    assert skipped == 4
    names = [function.name for function in functions]
    assert names == [
        'geometry.load',
        'geometry.flat.area',
        'geometry.flat.Shape.sides',
        'geometry.flat.Shape.sides:2',
        'geometry.flat.parse',
        'geometry.flat.parse:2',
        'geometry.latin.nom',
    ]
    assert functions[1].path == 'geometry/flat.py'
    # A package given as a root keeps its name.
    assert [function.name for function in pydoc_search.read([tmp_path / 'geometry'])[0]] == names


def test_functions_with_one_paragraph_share_a_query():
    functions = pydoc_search.parse(MODULE, module='m', path='m.py')
    train, dev = pydoc_search.split_queries(functions)
    assert [(query.id, query.text, query.rows) for query in train + dev] == [
        ('m.area', 'The area of a circle.', (0, 4))
    ]


def test_the_standard_library():
    functions, skipped = pydoc_search.read([pydoc_search.standard_library()])
    assert skipped == 0
    assert len({function.name for function in functions}) == len(functions) > 5000
    train, dev = pydoc_search.split_queries(functions)
    assert 0.15 < len(dev) / len(train + dev) < 0.25
    assert not {query.text for query in train} & {query.text for query in dev}
    by_name = {function.name: function for function in functions}
    found = by_name['textwrap.wrap']
    assert found.summary == 'Wrap a single paragraph of text, returning a list of wrapped lines.'
    assert inspect.getsourcelines(textwrap.wrap)[1] == found.line
    assert 'TextWrapper(width=width, **kwargs)' in found.code and 'paragraph' not in found.code
    assert not any('site-packages' in function.path or '/test/' in function.path for function in functions)


def test_surrogates_do_not_reach_files():
    assert pydoc_search.first_paragraph('a \ud800 b').encode() == b'a ? b'


@pytest.mark.parametrize(('name', 'sentence'), [('none', 'not a folder'), ('.', 'no Python function')])
def test_bad_roots(tmp_path, name, sentence):
    with pytest.raises(InputError, match=sentence):
        pydoc_search.read([tmp_path / name])


def run(name, *args):
    """Runs a command; returns its exit code, stdout and stderr."""
    command = [sys.executable, '-m', f'dvq_jax.cli.{name}', *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """What pydoc_search writes for two packages, and an index of it."""
    folder = tmp_path_factory.mktemp('pydoc_search')
    library = pydoc_search.standard_library()
    roots = [f'--source={library / name}' for name in ('email', 'json')]
    code, stdout, stderr = run('pydoc_search', f'--out={folder / "data"}', '--dim=32', *roots)
    assert code == 0, stderr
    docs = np.load(folder / 'data' / 'docs.npy')
    ids = open_ids(folder / 'data' / 'docs.tsv', len(docs))
    rng = np.random.default_rng(0)
    params = IndexParams(
        centroids=jnp.asarray(docs[rng.choice(len(docs), 4, replace=False)]),
        codebooks=jnp.asarray(rng.normal(scale=0.1, size=(16, 16, 2)), jnp.float32),
        rotation=jnp.eye(32),
    )
    encoding = quantizer.encode(params, jnp.asarray(docs))
    scann.write(
        folder / 'index', params=params, encoding=encoding, doc_ids=ids, corpus=docs, reorder='float32'
    )
    return folder, json.loads(stdout.splitlines()[-1])


def test_what_the_command_writes(written):
    folder, result = written
    functions, _ = pydoc_search.read([pydoc_search.standard_library() / name for name in ('email', 'json')])
    docs = np.load(folder / 'data' / 'docs.npy')
    assert docs.shape == (len(functions), 32) == (result['docs'], result['dim']) and docs.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(docs, axis=1), 1.0, atol=1e-5)
    ids = open_ids(folder / 'data' / 'docs.tsv', len(docs))
    assert list(ids) == [function.name for function in functions]
    for split, queries in zip(('train', 'dev'), pydoc_search.split_queries(functions), strict=True):
        vectors = np.load(folder / 'data' / f'{split}_queries.npy')
        query_ids = open_ids(folder / 'data' / f'{split}_queries.tsv', len(vectors))
        assert list(query_ids) == [query.id for query in queries]
        assert len(queries) == result[f'{split}_queries']
        qrels = data.read_qrels(folder / 'data' / f'{split}_qrels.txt', query_ids, ids)
        assert [tuple(sorted(rows)) for rows in qrels] == [query.rows for query in queries]


def test_dense_metrics_are_those_of_exact_search(written):
    folder, result = written
    docs, queries = (np.load(folder / 'data' / f'{name}.npy') for name in ('docs', 'dev_queries'))
    ids = open_ids(folder / 'data' / 'docs.tsv', len(docs))
    query_ids = open_ids(folder / 'data' / 'dev_queries.tsv', len(queries))
    qrels = data.read_qrels(folder / 'data' / 'dev_qrels.txt', query_ids, ids)
    ranks, recalls = [], []
    for query, rows in zip(queries, qrels, strict=True):
        order = np.argsort(-(docs @ query), kind='stable')
        hits = np.isin(order[:10], rows)
        ranks.append(1 / (1 + hits.argmax()) if hits.any() else 0)
        recalls.append(hits.sum() / len(rows))
    assert result['dense']['RR@10'] == pytest.approx(np.mean(ranks), abs=0.01)
    assert result['dense']['R@10'] == pytest.approx(np.mean(recalls), abs=0.01)


def test_ask(written):
    folder, _ = written
    question = 'decode a JSON document'
    code, stdout, stderr = run(
        'ask',
        f'--index={folder / "index"}',
        f'--data={folder / "data"}',
        f'--question={question}',
        '--nprobe=4',
    )
    assert code == 0, stderr
    *printed, last = stdout.splitlines()
    answers = json.loads(last)['answers'][question]
    assert len(answers) == 5 and any(answer['id'].startswith('json.') for answer in answers)
    assert sorted((answer['score'] for answer in answers), reverse=True) == [a['score'] for a in answers]
    place, line = answers[0]['place'].rsplit(':', 1)
    source = pathlib.Path(pydoc_search.standard_library(), place).read_text().split('\n')
    assert answers[0]['id'].split('.')[-1].split(':')[0] in source[int(line) - 1]
    assert question in printed and any(answers[0]['id'] in text for text in printed)


def test_ask_refuses_what_it_cannot_answer(written, tmp_path):
    folder, _ = written
    index = f'--index={folder / "index"}'
    shutil.copytree(folder / 'data' / 'lsa', tmp_path / 'lsa')
    lines = (folder / 'data' / 'docs.tsv').read_text().splitlines()
    (tmp_path / 'docs.tsv').write_text(''.join(f'{line.split(chr(9))[0]}\ttext\n' for line in lines))
    for args, sentence in (
        ([f'--data={folder / "data"}', '--question=zyxw'], 'use other words'),
        ([f'--data={folder / "none"}'], 'not a saved LSA embedding'),
        ([f'--data={tmp_path}'], 'not a list of functions'),
        (['--question=json'], 'give --documents, of an index with a text encoder, or --data'),
        ([f'--documents={tmp_path / "docs.tsv"}'], '--question is not given'),
        ([f'--documents={tmp_path / "docs.tsv"}', '--question=json'], 'has no text encoder'),
    ):
        code, stdout, stderr = run('ask', index, '--nprobe=4', *args)
        assert code == 2 and sentence in stderr and not stdout and 'Traceback' not in stderr


def test_nothing_is_left_of_a_failed_run(tmp_path):
    (tmp_path / 'one.py').write_text('def one(x):\n    """One of the things."""\n    return x')
    code, stdout, stderr = run('pydoc_search', f'--out={tmp_path / "out"}', f'--source={tmp_path}')
    assert code == 2 and 'too few' in stderr and not stdout
    assert [path.name for path in tmp_path.iterdir()] == ['one.py']
