import json
import subprocess
import sys
import unicodedata

import pytest

from dvq_jax.datasets import answers


def tokens_by_definition(text):
    """Runs of letters, digits and marks, and other single characters that are no blank, one by one."""
    tokens, inside = [], False
    for letter in unicodedata.normalize('NFD', text):
        major = unicodedata.category(letter)[0]
        if major in 'LNM':
            tokens[-1:] = [tokens[-1] + letter] if inside else [*tokens[-1:], letter]
        elif major not in 'ZC':
            tokens.append(letter)
        inside = major in 'LNM'
    return [token.lower() for token in tokens]


@pytest.mark.parametrize(
    'text',
    [
        'The U.S. has 50 states—and D.C.',
        'Café Zoë, naïve: 北京 is 3½ hours\u00a0away\u200b; x_y ^ [a-z] \\ ]',
        '',
        ' \t\n',
        ''.join(map(chr, range(0x20, 0x3000, 7))),
    ],
)
def test_tokens_are_those_of_the_definition(text):
    assert answers.tokenize(text).split(' ') == ['', *tokens_by_definition(text), ''] or text.strip() == ''
    if not text.strip():
        assert answers.tokenize(text) == ''


@pytest.mark.parametrize(
    ('passage', 'texts', 'expected'),
    [
        ('It lies in the U.S.A. today.', ['usa'], False),
        ('It lies in the U.S.A. today.', ['u.s.a.'], True),
        ('In 1977 it was done', ['977', '77 it'], False),
        ('In 1977 it was done', ['In  1977'], True),
        ('Beyonce\u0301 sang', ['Beyonc\u00e9'], True),
        ('Beyonce\u0301 sang', ['Beyonce'], False),
        ('anything at all', ['', ' \n'], False),
        ('', ['x'], False),
    ],
)
def test_an_answer_is_held_as_whole_tokens_in_order(passage, texts, expected):
    assert answers.judge({'q': ['d']}, {'q': texts}, {'d': passage}) == {'q': {'d': int(expected)}}


def test_queries_without_a_right_document_count_as_failures():
    found = {'q1': ['a', 'b'], 'q2': ['a'], 'q3': ['c'], 'q4': []}
    wanted = {'q1': ['Paris'], 'q2': ['Rome'], 'q4': ['Oslo']}
    qrels = answers.judge(found, wanted, {'a': 'in London', 'b': 'in PARIS, France', 'c': 'Oslo'})
    assert qrels == {'q1': {'a': 0, 'b': 1}, 'q2': {'a': 0}, 'q4': {}}
    measured = answers.measure(qrels, found)
    assert measured['RR@10'] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert measured['Success@1'] == 0 and measured['Success@5'] == pytest.approx(1 / 3)


def judge(folder, *flags):
    return subprocess.run(
        [sys.executable, '-m', 'dvq_jax.cli.judge', *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_judges_a_run(tmp_path):
    # Of equal scores the rank decides.
    (tmp_path / 'run.trec').write_text('q1 Q0 a 2 3.0 t\nq1 Q0 b 1 3.0 t\nq2 Q0 a 1 1.0 t\n')
    (tmp_path / 'docs.tsv').write_text('a\tRome [SEP]\tin London\nz\tParis\nb\tin Paris, France\n')
    (tmp_path / 'answers.tsv').write_text('q1\tTexas\tParis\nq2\tRome\n')
    flags = ['--run=run.trec', '--documents=docs.tsv', '--answers=answers.tsv']
    done = judge(tmp_path, *flags, '--out=qrels.txt')
    assert done.returncode == 0, done.stderr
    # A title is not what is judged; a run of two documents says nothing of the first ten.
    assert json.loads(done.stdout) == {'queries': 2, 'Success@1': 0.5}
    assert (tmp_path / 'qrels.txt').read_text() == 'q1 0 b 1\nq1 0 a 0\nq2 0 a 0\n'
    for name, text, said in (
        ('docs.tsv', 'a\tin London\n', "has no document 'b'"),
        ('answers.tsv', 'q1\n', 'line 1 has no answer'),
        ('answers.tsv', 'q9\tRome\n', 'has no query of run.trec'),
        ('answers.tsv', 'q1\ta\nq1\tb\n', "line 2 repeats the id 'q1'"),
        ('docs.tsv', 'a\n', 'line 1 has no text'),
        ('run.trec', '', 'is empty'),
        ('run.trec', 'q1 Q0 a 1 1 t\nq1 Q0 a 2 1 t\n', "line 2 repeats the document 'a' of 'q1'"),
        ('run.trec', 'q1 a 1\n', "line 1 is not 'query Q0 document rank score tag'"),
    ):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        failed = judge(tmp_path, *flags)
        assert failed.returncode == 2 and name in failed.stderr and said in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
        (tmp_path / name).write_text(kept)
