import dataclasses
import re

import numpy as np
import pytest

from dvq_jax.datasets import lsa
from dvq_jax.errors import InputError

TOPICS = {
    'copy': 'shutil copytree source target recursive',
    'date': 'calendar month weekday leap year',
    'html': 'escape ampersand bracket quote entity',
    'sound': 'sample rate channel frame wave',
}


def collection(seed=0, count=60):
    """Documents that use a topic's words, and questions that use others: only pairs connect them."""
    rng = np.random.default_rng(seed)
    documents, questions = [], []
    for row in range(count):
        topic, text = list(TOPICS.items())[row % len(TOPICS)]
        documents.append(' '.join(rng.choice(text.split(), 8)) + ' def return')
        questions.append(f'please {topic} {topic}ing things {rng.choice(["now", "soon", "again"])}')
    return documents, questions


@pytest.fixture(scope='module')
def fitted():
    documents, questions = collection()
    return lsa.fit(documents, questions, range(len(documents)), dim=8)


def test_words_are_split_and_stemmed():
    assert lsa.words('parseISODates(b64_string)', {}) == ['pars', 'iso', 'dat', 'b', '64', 'str']
    assert lsa.words('HTTPServer café', {}) == ['http', 'server', 'café']
    same = ['encode encodes encoded encoding', 'copy copies', 'class classes', 'process processes']
    for group in same:
        assert len(set(lsa.words(group, {}))) == 1, group


def test_compounds_are_words_of_two_more_frequent_words():
    documents = ['copy the tree'] * 6 + ['copytree', 'file', 'name']
    assert lsa.compounds(documents) == {'copytree': ('copy', 'tree')}
    assert lsa.words('copytree(x)', lsa.compounds(documents)) == ['copytre', 'cop', 'tre', 'x']
    # A word more frequent than its parts is no compound; neither is one of parts that are rare.
    assert lsa.compounds(['copy the tree'] * 6 + ['copytree'] * 7) == {}
    assert lsa.compounds(['copy the tree'] * 4 + ['copytree']) == {}


def test_embeddings_are_unit_norm_float32(fitted):
    documents, questions = collection()
    for vectors in (fitted.embed(documents), fitted.embed_queries(questions)):
        assert vectors.shape == (60, 8) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_unknown_words_give_zeros(fitted):
    assert not fitted.embed(['zyx']).any()
    assert not fitted.embed_queries(['zyx']).any()


def test_a_question_finds_its_topic_without_a_shared_word(fitted):
    documents, _ = collection(seed=1)
    scores_qn = fitted.embed_queries([f'{topic} it' for topic in TOPICS]) @ fitted.embed(documents).T
    for topic, scores in enumerate(scores_qn):
        assert set(np.argsort(-scores)[:10] % len(TOPICS)) == {topic}


def test_weights_are_sublinear_tf_times_squared_idf():
    documents = ['alpha alpha beta', 'alpha gamma', 'beta gamma', 'gamma delta', 'delta alpha']
    embedding = lsa.fit(documents, ['delta'], [3], dim=3)
    counts = {'alpha': 3, 'beta': 2, 'gamma': 3, 'delta': 3}  # of 5 documents and one question
    weights = {lsa.words(word, {})[0]: (np.log(7 / (1 + df)) + 1) ** 2 for word, df in counts.items()}
    np.testing.assert_allclose(embedding.weights, [weights[word] for word in embedding.vocabulary], rtol=1e-5)
    tfs = {'alpha': 1 + np.log(2), 'beta': 1.0}
    tfs = {lsa.words(word, {})[0]: tf for word, tf in tfs.items()}
    x = np.array([tfs.get(word, 0) * weights[word] for word in embedding.vocabulary])
    projected = x @ embedding.components
    np.testing.assert_allclose(
        embedding.embed(documents)[0], projected / np.linalg.norm(projected), rtol=1e-4, atol=1e-5
    )


def test_query_map_is_ridge_around_the_identity(fitted):
    documents, questions = collection()
    z_q, z_d = fitted.embed(questions), fitted.embed(documents)
    gradient = z_q.T @ (z_q @ fitted.query_map - z_d) + 3.0 * (fitted.query_map - np.eye(8))
    np.testing.assert_allclose(gradient, 0, atol=1e-3)


def test_save_and_load_are_exact_and_the_same_fit_gives_the_same_files(fitted, tmp_path):
    documents, questions = collection()
    fitted.save(tmp_path / 'a')
    lsa.fit(documents, questions, range(60), dim=8).save(tmp_path / 'b')
    for name in ('words.json', 'arrays.npz'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    loaded = lsa.load(tmp_path / 'a')
    np.testing.assert_array_equal(loaded.embed_queries(questions), fitted.embed_queries(questions))
    assert loaded.vocabulary == fitted.vocabulary


@pytest.mark.parametrize('name', ['words.json', 'arrays.npz'])
def test_damaged_files_are_refused(fitted, tmp_path, name):
    fitted.save(tmp_path / 'lsa')
    path = tmp_path / 'lsa' / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=re.escape(str(tmp_path / 'lsa'))):
        lsa.load(tmp_path / 'lsa')
    path.unlink()
    with pytest.raises(InputError, match='write it again'):
        lsa.load(tmp_path / 'lsa')


def test_pickles_are_refused(fitted, tmp_path):
    dataclasses.replace(fitted, weights=np.array([{'a': 1}], dtype=object)).save(tmp_path / 'lsa')
    with pytest.raises(InputError, match='allow_pickle=False'):
        lsa.load(tmp_path / 'lsa')


def test_lists_of_different_lengths_are_refused(fitted, tmp_path):
    dataclasses.replace(fitted, vocabulary=fitted.vocabulary[1:]).save(tmp_path / 'lsa')
    with pytest.raises(InputError, match='words but'):
        lsa.load(tmp_path / 'lsa')


def test_too_many_dimensions_are_refused():
    with pytest.raises(InputError, match='--dim=60'):
        lsa.fit(*collection(), range(60), dim=60)
