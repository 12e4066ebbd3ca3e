"""The report of a small trained run, against a calculation from all scores at once."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest
from absl import flags

from dvq_jax import evaluate, report, report_losses, report_page
from dvq_jax.cli import report as command
from dvq_jax.errors import InputError
from dvq_jax.report_losses import CODE_ERROR, DENSE_MISSED, FOUND, LIST_MISSED
from dvq_jax.train import train
from dvq_jax.types import Encoding

NPROBE = [1, 2, 4, 16]
PICTURES = {'training.png', 'quality.png', 'lists.png', 'codewords.png', 'losses.png'}


@pytest.fixture(scope='module')
def workdir(collection, tmp_path_factory):
    from configs import default

    config = default.get_config()
    config.data.dataset = collection['dataset']
    config.data.batch_size = 16
    config.index.lists, config.index.codebooks, config.index.codewords = 16, 4, 256  # few ties
    config.index.rotation, config.tower.name = 'identity', 'identity'
    config.initialize.coarse_iterations = config.initialize.pq_iterations = 2
    config.routing.rounds = config.codes.queries = 0
    config.candidates = 'top50:4+ib'
    config.train.steps, config.train.log_every, config.train.checkpoint_every = 2, 1, 2
    config.eval.nprobe = 4
    workdir = tmp_path_factory.mktemp('report') / 'W'
    train(config, str(workdir))
    return workdir


@pytest.fixture(scope='module')
def opened(workdir):
    return evaluate.open_trained(str(workdir), 'latest')


@pytest.fixture(scope='module')
def queries(collection, opened):
    """Every fifth query's answer is beyond dense search's top 10, for the others it is near the top."""
    read = evaluate.read_queries(
        collection['queries'], query_ids=collection['query_ids'], qrels=collection['qrels'], dataset=opened[1]
    )
    count = 400
    places = np.resize([0, 0, 3, 9, 40], count)
    return evaluate.Queries(
        ids=read.ids[:count],
        embeddings=read.embeddings[:count],
        positives=[teacher[[place]] for teacher, place in zip(read.teacher, places, strict=False)],
        teacher=read.teacher[:count],
        doc_ids=read.doc_ids,
    )


@pytest.fixture(scope='module')
def measured(workdir, opened, queries):
    return report.measure(workdir, *opened, queries, nprobe=NPROBE, source='q.npy')


def open_index(opened, queries, copies=1, seed=0):
    """The trained index; further copies of each document are in random lists with random codes."""
    index = report._open_index(*opened, queries)
    rng = np.random.default_rng(seed)
    count = len(opened[1].corpus)
    lists, codes = [index.encoding.lists], [index.encoding.codes]
    for _ in range(copies - 1):
        lists.append(rng.integers(len(index.params.centroids), size=count, dtype=np.int32))
        codes.append(rng.integers(index.params.codebooks.shape[1], size=codes[0].shape, dtype=np.uint8))
    encoding = Encoding(lists=np.concatenate(lists), codes=np.concatenate(codes))
    return report_losses.Index(index.params, encoding, index.transformed, copies)


def all_scores(index):
    """Coarse scores [Q, L], and the scores of every entry [Q, copies, N], from the definitions."""
    params, encoding = index.params, index.encoding
    rotated = index.transformed @ params.rotation
    words = params.codebooks[np.arange(len(params.codebooks)), encoding.codes].reshape(
        len(encoding.lists), -1
    )
    scores = rotated @ (params.centroids[encoding.lists] + words).T
    return rotated @ params.centroids.T, scores.reshape(len(rotated), index.copies, -1)


def test_every_answer_is_where_brute_force_says(opened, queries, measured):
    index = open_index(opened, queries)
    coarse, scores = all_scores(index)
    dense = np.argsort(-queries.embeddings @ opened[1].corpus.T, axis=1, kind='stable')
    order = np.argsort(-coarse, axis=1, kind='stable')
    for nprobe, counts in measured.losses.counts.items():
        expected = np.zeros(4, int)
        for query, (answer,) in enumerate(queries.positives):
            probed = np.isin(index.encoding.lists, order[query, :nprobe])
            best = np.argsort(-np.where(probed, scores[query, 0], -np.inf), kind='stable')[:10]
            if probed[answer] and answer in best:
                expected[FOUND] += 1
            elif answer not in dense[query, :10]:
                expected[DENSE_MISSED] += 1
            else:
                expected[CODE_ERROR if probed[answer] else LIST_MISSED] += 1
        np.testing.assert_array_equal(counts, expected)
        assert counts.sum() == len(queries.ids) == measured.queries
        assert counts[FOUND] / counts.sum() == pytest.approx(measured.quality.index[str(nprobe)]['R@10'])
    assert measured.main == 4 and measured.losses.counts[16][LIST_MISSED] == 0
    assert all(measured.losses.counts[1] > 0), 'the small collection shows no loss of some kind'


def test_an_index_that_loses_nothing_has_no_worst_queries(opened, queries):
    index = open_index(opened, queries)
    first = [index.encoding.lists[:1], index.encoding.codes[:1]]
    alone = report_losses.Index(
        index.params, Encoding(lists=first[0], codes=first[1]), index.transformed[:3], 1
    )
    one = np.zeros((3, 1), np.int32)
    found = evaluate.Queries(queries.ids[:3], queries.embeddings[:3], list(one), one, queries.doc_ids)
    losses = report_losses.find_losses(alone, found, opened[1], nprobe=[16], main=16, query_ids_path=None)
    assert losses.counts[16].tolist() == [3, 0, 0, 0] and losses.worst == []


@pytest.mark.parametrize('copies', [1, 2])
def test_ranks_are_those_of_all_scores(opened, queries, copies):
    index = open_index(opened, queries, copies)
    coarse, scores = all_scores(index)
    best = scores.max(axis=1)
    target = report_losses.targets(queries)
    rows = np.arange(0, len(target.queries), 7)
    docs = target.docs[rows]
    expected = [1 + np.sum(best[row] > best[row, doc] + 1e-6) for row, doc in zip(rows, docs, strict=True)]
    np.testing.assert_array_equal(report_losses.full_ranks(index, rows, docs), expected)
    own = index.encoding.lists.reshape(copies, -1)
    expected = [
        1 + np.sum(coarse[row] > coarse[row, own[:, doc]].max()) for row, doc in zip(rows, docs, strict=True)
    ]
    np.testing.assert_array_equal(report_losses.list_ranks(index, rows, docs), expected)


def test_the_answer_is_the_relevant_document_that_the_teacher_ranks_best(queries):
    def made(positives):
        positives = None if positives is None else [np.array(rows, np.int32) for rows in positives]
        teacher = np.array([[5, 6, 7], [1, 2, 3], [8, 9, 4]], np.int32)
        return evaluate.Queries(['a', 'b', 'c'], queries.embeddings[:3], positives, teacher, queries.doc_ids)

    target = report_losses.targets(made([[7, 6], [], [2]]))
    assert [list(target.queries), list(target.docs)] == [[0, 2], [6, 2]]
    assert target.dense_rank[0] == 2 and target.dense_rank[1] > 1000
    target = report_losses.targets(made(None))
    assert [list(target.docs), list(target.dense_rank)] == [[5, 1, 8], [1, 1, 1]]


def test_the_worst_queries_are_lost_ones(measured, queries):
    worst = measured.losses.worst
    assert 0 < len(worst) <= 20
    assert [one.dense_rank for one in worst] == sorted(one.dense_rank for one in worst)
    for one in worst:
        row = queries.ids.index(one.query)
        assert one.doc == queries.doc_ids[queries.positives[row][0]]
        assert queries.teacher[row][one.dense_rank - 1] == queries.positives[row][0]
        assert (one.reason == LIST_MISSED) == (one.list_rank > measured.main)
        assert one.reason == LIST_MISSED or one.full_rank > 10


def test_lists_and_codewords_are_counted(opened, queries, measured):
    index, contents = open_index(opened, queries), measured.contents
    assert contents.list_sizes.tolist() == [np.sum(index.encoding.lists == row) for row in range(16)]
    shares = np.array([np.mean(index.encoding.codes[:, 1] == word) for word in range(256)])
    assert contents.used[1] == np.mean(shares > 0)
    assert contents.entropy[1] == pytest.approx(-sum(p * np.log2(p) for p in shares if p))
    assert measured.bytes_per_document == 4 * 8 / 8 and measured.dense_bytes == 32 * 4


class _Check(html.parser.HTMLParser):
    """Collects what a page refers to, and that every element ends where it should."""

    def __init__(self):
        super().__init__()
        self.open, self.references = [], []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ('src', 'href', 'srcset')]
        if tag not in ('meta', 'img', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def run_command(workdir, **values):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(['report', f'--workdir={workdir}', *(f'--{name}={value}' for name, value in values.items())])
    try:
        return command.main()
    finally:
        for name in values:
            flags.FLAGS[name].unparse()


def test_the_command_writes_a_page_that_needs_nothing_beside_it(workdir, tmp_path):
    row = {'bytes_per_document': 4.0, 'nprobe': {'4': {'RR@10': 0.5, 'R@100': 0.7, 'docs_scanned': 300.0}}}
    baselines = {'<OPQ>': row, 'larger': {**row, 'bytes_per_document': 8.0}, 'settings': {}}
    (tmp_path / 'b.json').write_text(json.dumps(baselines))
    result = run_command(workdir, nprobe='2,10', baselines=tmp_path / 'b.json')
    folder = workdir / 'report'
    assert result['report'] == str(folder / 'report.html') and result['step'] in (0, 2)
    assert {path.name for path in folder.iterdir()} == PICTURES | {'report.html'}
    text = (folder / 'report.html').read_text()
    check = _Check()
    check.feed(text)
    assert not check.open and len(check.references) == len(PICTURES)
    assert all(reference.startswith('data:image/png;base64,') for reference in check.references)
    assert not re.search(r'https?://|url\(|@import|<script|<link', text)
    for word in ('MRR@10', 'dense', 'Imbalance', 'Where answers are lost', 'worst queries', '60 queries'):
        assert word in text
    run_command(
        workdir, nprobe='2,10', baselines=tmp_path / 'b.json'
    )  # replaces its own, with the same bytes
    assert (folder / 'report.html').read_text() == text
    assert not list(workdir.glob('.report*'))


def test_texts_are_read_from_behind_the_ids(tmp_path):
    (tmp_path / 'q.tsv').write_text('a\tfirst text\nb\nc\tthird\tand more\n')
    texts = report_losses._texts(tmp_path / 'q.tsv', np.array([2, 1]))
    assert texts == {1: '', 2: 'third\tand more'}


def test_only_baselines_of_the_same_bytes_are_shown():
    rows = {
        'same': {'bytes_per_document': 16.0, 'nprobe': {'1': {}}, 'documents': 10},
        'twice the bytes': {'bytes_per_document': 32.0, 'nprobe': {}},
        'another corpus': {'bytes_per_document': 16.0, 'nprobe': {}, 'documents': 11},
    }
    assert list(report._comparable(rows, size=16.0, documents=10)) == ['same']


def test_without_labels_the_teacher_answers(workdir, opened, queries, tmp_path):
    unlabelled = evaluate.Queries(queries.ids, queries.embeddings, None, queries.teacher, queries.doc_ids)
    measured = report.measure(workdir, *opened, unlabelled, nprobe=[2], source='q.npy')
    assert measured.losses.counts[2][DENSE_MISSED] == 0 and measured.losses.counts[2].sum() == len(
        queries.ids
    )
    text = report_page.write(measured, tmp_path / 'out').read_text()
    assert 'without labels' in text and 'MRR@10' not in text


def test_nothing_but_a_report_of_the_run_is_replaced(workdir, tmp_path):
    (tmp_path / 'mine').mkdir()
    for out in (tmp_path / 'mine', workdir / 'checkpoints', workdir / 'metrics.jsonl'):
        with pytest.raises(InputError, match=f'{out.name}: exists already'):
            report_page.may_write(out, workdir)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'nprobe': 'ten'}, '--nprobe=ten: give numbers'),
        ({'nprobe': '17'}, 'nprobe is 17; the index has 16 lists'),
        ({'qrels': 'q.txt'}, '--query_ids and --qrels describe --queries'),
        ({'baselines': 'nowhere.json'}, 'nowhere.json: not results to compare with'),
    ],
)
def test_bad_flags_are_one_sentence(workdir, values, message):
    with pytest.raises(InputError, match=message):
        run_command(workdir, **values)


def test_without_matplotlib_it_says_what_to_install(workdir, monkeypatch):
    monkeypatch.delitem(sys.modules, 'dvq_jax.report_page')
    monkeypatch.delattr('dvq_jax.report_page')
    monkeypatch.delitem(sys.modules, 'dvq_jax.report_figures')
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(InputError, match=r"pip install '\.\[report\]'"):
        run_command(workdir)
