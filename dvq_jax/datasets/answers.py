"""Right or wrong by answers: a passage is right where it holds one of the question's answers.

Open-domain question answering is judged so, by the tokens and the comparison of Chen et al. (2017, arXiv
1704.00051) and Karpukhin et al. (2020, arXiv 2004.04906): both sides in Unicode's form NFD and lower case,
cut into runs of letters, digits and marks, and single other characters that are neither blank nor control; an
answer is held where its tokens stand in the passage one after another.
"""

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from dvq_jax import metrics

NAMES = ('RR@10', 'Success@1', 'Success@5', 'Success@10', 'Success@20', 'Success@100')


@functools.cache
def _tokens() -> re.Pattern:
    def group(points: Iterable[int]) -> str:
        runs = itertools.groupby(enumerate(points), key=lambda pair: pair[1] - pair[0])
        ends = ([point for _, point in run] for _, run in runs)
        return ''.join(f'{re.escape(chr(run[0]))}-{re.escape(chr(run[-1]))}' for run in ends)

    major = [unicodedata.category(chr(point))[0] for point in range(sys.maxunicode + 1)]
    words = group(point for point, letter in enumerate(major) if letter in 'LNM')
    blanks = group(point for point, letter in enumerate(major) if letter in 'ZC')
    return re.compile(f'[{words}]+|[^{blanks}]')


def tokenize(text: str) -> str:
    """The tokens of a text, each with a blank on either side: ' the u . s . '."""
    tokens = _tokens().findall(unicodedata.normalize('NFD', text))
    return f' {" ".join(tokens).lower()} ' if tokens else ''


def judge(
    found: Mapping[str, Sequence[str]], answers: Mapping[str, Sequence[str]], passages: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    """Judges the documents of a run.

    Args:
      found: query id -> the documents found.
      answers: query id -> its answers.
      passages: document id -> text, of every document of the run.

    Returns:
      Qrels of every query with answers: query id -> document id -> 1 where the document holds one, else 0. An
      answer without any token is held by none.

    Example:
      judge({'q': ['d']}, {'q': ['usa', 'u.s']}, {'d': 'It is in the U.S.A.'})     # {'q': {'d': 1}}
    """
    wanted = {query: [*filter(None, map(tokenize, texts))] for query, texts in answers.items()}
    tokens = functools.lru_cache(maxsize=100_000)(lambda name: tokenize(passages[name]))
    return {
        query: {name: int(any(text in tokens(name) for text in texts)) for name in found.get(query, ())}
        for query, texts in wanted.items()
    }


def measure(qrels: metrics.Qrels, found: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """MRR@10 and accuracy: the share of queries with a right document among the first k, Success@k.

    Args:
      qrels: from `judge`; a query without a right document counts, as a failure.
      found: query id -> the documents found, best first; scores may be equal, their order counts.

    Returns:
      Name -> mean over the queries of the qrels.
    """
    run = {query: {name: -place for place, name in enumerate(names)} for query, names in found.items()}
    return metrics.calculate(NAMES, qrels, run)
