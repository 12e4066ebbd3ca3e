"""How near our side of each row that `speed.py` stored comes to its floor, see `floors`."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import floors

Row = Mapping[str, Any]


class Reached(NamedTuple):
    """What one path took.

    Attributes:
      path: its name, and which of its ways.
      sizes: letters and numbers.
      seconds: measured.
      floor: of the same work.
    """

    path: str
    sizes: str
    seconds: float
    floor: floors.Floor

    def fraction(self, peaks: Mapping[str, float], products: str) -> float:
        """The floor's seconds by such products over the measured ones, of a device with these peaks."""
        return self.floor.seconds(floors.Peaks(**peaks), products) / self.seconds


def _step(row: Row) -> Iterator[Reached]:
    keys = ('batch_size', 'candidates', 'dim', 'lists', 'codewords')
    sizes = f'D {row["dim"]}, M {row["codebooks"]}, L {row["lists"]}, C {row["candidates"]}'
    for way, seconds in row['seconds'].items():
        if way != 'peer':
            estimator = 'softmax' if way == 'softmax' else 'hard'
            floor = floors.step(**{key: row[key] for key in keys}, estimator=estimator)
            yield Reached(f'step, {way}', sizes, seconds, floor)


def _mining(row: Row, *, width: int = 4) -> Iterator[Reached]:
    keys = ('documents', 'queries', 'dim', 'topk')
    floor = floors.mining(**{key: row[key] for key in keys}, width=width)
    sizes = f'N {row["documents"]}, Q {row["queries"]}, D {row["dim"]}'
    yield Reached('mining', sizes, row['seconds']['ours'], floor)


def _encoding(row: Row) -> Iterator[Reached]:
    keys = ('documents', 'dim', 'lists', 'codebooks', 'codewords')
    floor = floors.encoding(**{key: row[key] for key in keys}, width=4)
    sizes = f'N {row["documents"]}, D {row["dim"]}, L {row["lists"]}, M {row["codebooks"]}'
    yield Reached('encoding', sizes, row['seconds']['ours'], floor)


def _choosing(row: Row) -> Iterator[Reached]:
    keys = ('documents', 'queries', 'wanted', 'pairs', 'dim', 'codebooks', 'codewords', 'sweeps')
    floor = floors.choosing(**{key: row[key] for key in keys}, width=2)
    sizes = f'N {row["documents"]}, D {row["dim"]}, M {row["codebooks"]}, {row["pairs"]} pairs'
    yield Reached('choosing codes', sizes, row['seconds']['chosen'], floor)


def _clustering(row: Row) -> Iterator[Reached]:
    about = {key: row[key] for key in ('documents', 'dim', 'iterations')}
    sizes = f'n {row["documents"]}, D {row["dim"]}'
    if 'lists' in row:
        sizes, floor = f'{sizes}, L {row["lists"]}', floors.kmeans(**about, centers=row['lists'])
    else:
        keys = ('codewords', 'pq_iterations')
        sizes, floor = f'{sizes}, M {row["codebooks"]}', floors.opq(**about, **{k: row[k] for k in keys})
    yield Reached(row['fit'], sizes, row['seconds']['ours'], floor)


def _search(row: Row) -> Iterator[Reached]:
    keys = ('queries', 'dim', 'lists', 'codebooks', 'codewords')
    sizes = f'N {row["documents"]}, Q {row["queries"]}, D {row["dim"]}, L {row["lists"]}, '
    sizes += f'M {row["codebooks"]}, K {row["codewords"]}, P {row["nprobe"]}'
    for engine in ('exported', 'reference'):
        scanned = row['documents_scanned']['exported']
        floor = floors.search(**{key: row[key] for key in keys}, scanned=scanned)
        yield Reached(f'search, {engine}', sizes, row['queries'] / row['queries_per_second'][engine], floor)


_PATHS = {
    'step': _step,
    'large_step': _step,
    'mining': _mining,
    'large_mining': functools.partial(_mining, width=2),
    'encoding': _encoding,
    'choosing': _choosing,
    'clustering': _clustering,
    'search': _search,
}


def reached(stored: Mapping[str, Any]) -> Iterator[tuple[str, Reached]]:
    """The parts that are stored and have floors, in order.

    Args:
      stored: what `speed.py` stored.

    Yields:
      The part, and what a path of it took.
    """
    for part, paths in _PATHS.items():
        measured = stored.get(part, {'rows': []})
        for row in measured['rows']:
            if row.get('cores', measured['cores']) == measured['cores']:  # whose peaks are there
                for found in paths(row):
                    yield part, found
