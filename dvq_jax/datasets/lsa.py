"""A small text embedding without a neural network: supervised latent semantic analysis.

A text is a bag of words: identifiers are split at underscores, case and digits, compounds (copytree) also
into their parts, and words are stemmed. Its weights are x = (1 + ln tf) · idf², of unit norm; idf counts
twice because only the rare words of a question tell what it is about. With the questions whose document is
known:

1. P [V, D]: the right singular vectors of the documents (latent semantic analysis, Deerwester et al., 1990),
   where a document with a known question is the sum of the two, so that words of questions and words of code
   share dimensions. z = x·P / ‖x·P‖.
2. W [D, D]: maps questions to their documents, W = argmin ‖Z_q·W − Z_d‖² + λ‖W − I‖².

A document is z, a question z·W, both of unit norm; they are compared by inner product.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dvq_jax import files
from dvq_jax.errors import InputError

_WORD = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+|\d+')
_ENDING = re.compile(r'(?<=\w\w\w)(?:ies|ing|ed|es|e|y)?(?:(?<!s)s)?$')
_SHORTEST_PART = 3
# A part of a compound is a word of at least so many documents.
_PART_DOCUMENTS = 5
# The weight λ of the identity in the questions' map: 3 questions along a direction outweigh it.
_RIDGE = 3.0


@functools.cache
def _stem(word: str) -> str:
    return _ENDING.sub('', word, count=1)


def compounds(documents: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Finds written-together words: copytree is copy and tree.

    A word is a compound of two words where both have three letters or more and are in 5 documents or more,
    and in more documents than the compound. Of several splits the one whose rarer part is in the most
    documents is taken.

    Args:
      documents: texts.

    Returns:
      The parts of each compound, all in lower case, not stemmed.
    """
    counts = collections.Counter(
        word for text in documents for word in {word.lower() for word in _WORD.findall(text)}
    )
    parts = {}
    for word, count in sorted(counts.items()):
        cuts = range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1)
        splits = [(min(counts[word[:cut]], counts[word[cut:]]), cut) for cut in cuts]
        rarest, cut = max(splits, default=(0, 0))
        if rarest >= _PART_DOCUMENTS and rarest > count:
            parts[word] = word[:cut], word[cut:]
    return parts


def words(text: str, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """The stems of a text's words, each compound followed by its parts.

    Example:
      words('parseISODates(b64)', {}) == ['pars', 'iso', 'dat', 'b', '64']

    Args:
      text: English, code or both.
      parts: from `compounds`.
    """
    found = (word.lower() for word in _WORD.findall(text))
    return [_stem(part) for word in found for part in (word, *parts.get(word, ()))]


def _vectorizer(analyzer: Callable[[str], list[str]], **options):
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ModuleNotFoundError as error:
        raise InputError("scikit-learn is not installed; run pip install 'dvq_jax[quickstart]'.") from error
    return TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, dtype=np.float32, **options)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Lsa:
    """A fitted embedding.

    Example:
      lsa = fit(texts, questions, rows, dim=512)
      scores_qn = lsa.embed_queries(['copy a folder']) @ lsa.embed(texts).T

    Attributes:
      compounds: the parts of compound words.
      vocabulary: the V stems that it knows.
      weights: [V] float32, idf².
      components: [V, D] float32, P.
      query_map: [D, D] float32, W.
    """

    compounds: Mapping[str, Sequence[str]]
    vocabulary: tuple[str, ...]
    weights: np.ndarray
    components: np.ndarray
    query_map: np.ndarray

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds documents.

        Args:
          texts: n documents.

        Returns:
          [n, D] float32 of unit norm; zeros for a text without any known word.
        """
        analyzer = functools.partial(words, parts=self.compounds)
        vectorizer = _vectorizer(analyzer, vocabulary=self.vocabulary)
        vectorizer.idf_ = self.weights
        return _unit(vectorizer.transform(texts) @ self.components)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds questions.

        Args:
          texts: n questions.

        Returns:
          [n, D] float32 of unit norm; zeros for a text without any known word.
        """
        return _unit(self.embed(texts) @ self.query_map)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `words.json` and `arrays.npz` to a new folder.

        Raises:
          InputError: the folder exists or cannot be written.
        """
        with files.atomic_folder(folder) as aside:
            known = {'compounds': self.compounds, 'vocabulary': self.vocabulary}
            (aside / 'words.json').write_text(json.dumps(known), encoding='utf-8')
            np.savez(
                aside / 'arrays.npz',
                weights=self.weights,
                components=self.components,
                query_map=self.query_map,
            )


def load(folder: str | os.PathLike) -> Lsa:
    """Reads what `Lsa.save` wrote; nothing in it is executed.

    Raises:
      InputError: the folder lacks a file, or one of them is damaged.
    """
    folder = pathlib.Path(folder)
    try:
        known = json.loads((folder / 'words.json').read_text(encoding='utf-8'))
        with np.load(folder / 'arrays.npz', allow_pickle=False) as arrays:
            lsa = Lsa(
                compounds=known['compounds'],
                vocabulary=tuple(known['vocabulary']),
                weights=arrays['weights'],
                components=arrays['components'],
                query_map=arrays['query_map'],
            )
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{folder}: not a saved LSA embedding ({error}); write it again.') from error
    if not len(lsa.vocabulary) == len(lsa.weights) == len(lsa.components):
        raise InputError(
            f'{folder}: {len(lsa.vocabulary)} words but {len(lsa.components)} rows; write it again.'
        )
    return lsa


def fit(
    documents: Sequence[str],
    queries: Sequence[str],
    rows: Sequence[int],
    *,
    dim: int = 512,
    seed: int = 0,
) -> Lsa:
    """Fits the embedding to documents and to the questions whose document is known.

    Args:
      documents: N texts.
      queries: n questions.
      rows: [n], the document of each question, in [0, N).
      dim: D.
      seed: of the randomized singular value decomposition.

    Returns:
      The embedding; the same for the same arguments.

    Raises:
      InputError: more dimensions asked for than the texts have, or scikit-learn is not installed.
    """
    parts = compounds(documents)
    vectorizer = _vectorizer(functools.partial(words, parts=parts), min_df=2)
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    vectorizer.fit([*documents, *queries])
    vectorizer.idf_ = np.square(vectorizer.idf_)
    docs, questions = vectorizer.transform(documents), vectorizer.transform(queries)
    if dim >= min(docs.shape):
        raise InputError(
            f'--dim={dim}: {docs.shape[0]} documents with {docs.shape[1]} words give fewer dimensions;'
            f' ask for at most {min(docs.shape) - 1}.'
        )
    rows = np.asarray(rows)
    chosen = csr_matrix(
        (np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape=(len(documents), len(rows))
    )
    joint = normalize(docs + chosen @ questions)
    components = TruncatedSVD(dim, n_iter=4, random_state=seed).fit(joint).components_.T
    sources, targets = _unit(questions @ components), _unit(docs[rows] @ components)
    shrink = _RIDGE * np.eye(dim)
    query_map = np.linalg.solve(sources.T @ sources + shrink, sources.T @ targets + shrink)
    return Lsa(
        compounds=parts,
        vocabulary=tuple(vectorizer.get_feature_names_out()),
        weights=vectorizer.idf_.astype(np.float32),
        components=np.ascontiguousarray(components, np.float32),
        query_map=query_map.astype(np.float32),
    )
