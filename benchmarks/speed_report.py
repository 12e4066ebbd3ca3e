"""The tables of `speed.py`, of what it stored: one a part, as docs/performance.md shows them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import speed_floors
from tables import table

Row = Mapping[str, Any]

_ENGINES = {
    'exported': 'ours, exported to ScaNN',
    'exported_plain': 'ours, without a rotation',
    'native': "ScaNN's own training",
    'faiss': 'FAISS IVFPQ',
    'faiss_fast_scan': 'FAISS IVFPQFastScan',
    'reference': 'our reference search',
}


def _number(value: float) -> str:
    """Three digits, or all before the point, with thin groups of thousands; a count has no others."""
    digits = 0 if isinstance(value, int) or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f'{value:,.{digits}f}'.replace(',', ' ')


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _times(ratio: float) -> str:
    return f'{ratio:.2f} ×'


def _step(rows: Sequence[Row]) -> str:
    titles = ('D', 'M', 'C', 'ours, ms', "ours, 'softmax', ms", "peers' recipe, ms")
    titles += ('times faster than the peers', "'softmax', times faster")
    return table(
        titles,
        (
            [
                *(str(row[name]) for name in ('dim', 'codebooks', 'candidates')),
                *(_ms(row['seconds'][name]) for name in ('hard', 'softmax', 'peer')),
                *(_times(row['peer_over_ours'][name]) for name in ('hard', 'softmax')),
            ]
            for row in rows
        ),
    )


def _large_step(rows: Sequence[Row]) -> str:
    titles = ('D', 'M', 'L', 'C', 'by float32, ms', 'by bfloat16, ms', 'times faster by bfloat16')
    return table(
        titles,
        (
            [
                *(str(row[name]) for name in ('dim', 'codebooks', 'lists', 'candidates')),
                *(_ms(row['seconds'][name]) for name in ('float32', 'bfloat16')),
                _times(row['seconds']['float32'] / row['seconds']['bfloat16']),
            ]
            for row in rows
        ),
    )


def _against_faiss(row: Row) -> list[str]:
    seconds = [_number(row['seconds'][name]) for name in ('ours', 'faiss')]
    return [*seconds, _times(row['faiss_over_ours'])]


def _mining(rows: Sequence[Row]) -> str:
    titles = ('documents', 'queries', 'D', 'top', 'ours, s', 'FAISS flat, s')
    titles += ('times faster than FAISS', 'TFLOP/s', 'float32 alone, s', 'same rows')
    return table(
        titles,
        (
            [
                *(_number(row[name]) for name in ('documents', 'queries', 'dim', 'topk')),
                *_against_faiss(row),
                f'{_mined(row):.3f}',
                _number(row['seconds']['float32']),
                f'{row["same"]:.4%}',
            ]
            for row in rows
        ),
    )


def _large_mining(rows: Sequence[Row]) -> str:
    titles = ('documents', 'queries', 'D', 'top', 's', 'TFLOP/s', 'queries/s')
    return table(
        titles,
        (
            [
                *(_number(row[name]) for name in ('documents', 'queries', 'dim', 'topk')),
                _number(row['seconds']['ours']),
                f'{_mined(row):.3g}',
                _number(row['queries'] / row['seconds']['ours']),
            ]
            for row in rows
        ),
    )


def _mined(row: Row) -> float:
    """TFLOP/s."""
    return 2e-12 * row['queries'] * row['documents'] * row['dim'] / row['seconds']['ours']


def _encoding(rows: Sequence[Row]) -> str:
    titles = ('documents', 'D', 'L', 'M', 'ours, s', 'FAISS add, s', 'times faster than FAISS')
    titles += ('our documents/s', 'float32 alone, s', 'same codes')
    return table(
        titles,
        (
            [
                *(_number(row[name]) for name in ('documents', 'dim', 'lists', 'codebooks')),
                *_against_faiss(row),
                _number(row['documents'] / row['seconds']['ours']),
                _number(row['seconds']['float32']),
                f'{row["same"]:.5%}',
            ]
            for row in rows
        ),
    )


def _choosing(rows: Sequence[Row]) -> str:
    titles = ('documents', 'D', 'M', 'queries a document', 'chosen, s', 'nearest, s', 'documents/s, chosen')
    return table(
        titles,
        (
            [
                *(_number(row[name]) for name in ('documents', 'dim', 'codebooks')),
                _number(row['pairs'] / row['wanted']),
                *(_number(row['seconds'][name]) for name in ('chosen', 'nearest')),
                _number(row['documents'] / row['seconds']['chosen']),
            ]
            for row in rows
        ),
    )


def _clustering(rows: Sequence[Row]) -> str:
    titles = ('fit', 'documents', 'D', 'size', 'iterations', 'ours, s', 'FAISS, s')
    titles += ('times faster than FAISS', "distortion, ours / FAISS's")
    lines = []
    for row in rows:
        size = f'L {row["lists"]}' if 'lists' in row else f'M {row["codebooks"]}'
        count = str(row['iterations']) + (f' + {row["pq_iterations"]} PQ' if 'pq_iterations' in row else '')
        about = [row['fit'], _number(row['documents']), str(row['dim']), size, count]
        lines.append([*about, *_against_faiss(row), f'{row["distortion_ratio"]:.4f}'])
    return table(titles, lines)


def _search(rows: Sequence[Row]) -> str:
    titles = ('M', 'K', 'cores', 'P', 'index', 'queries/s', "times faster than ScaNN's own")
    titles += ('teacher@10', 'documents scanned', "P for ScaNN's own teacher@10", 'times faster with it')
    lines = []
    for row in rows:
        speed = row['queries_per_second']
        for name in (name for name in _ENGINES if name in speed):
            scanned = row['documents_scanned'].get(name, row['documents_scanned']['exported'])
            equal = row['at_native_recall'].get(name)
            lines.append(
                [
                    *(str(row[key]) for key in ('codebooks', 'codewords', 'cores', 'nprobe')),
                    _ENGINES[name],
                    _number(speed[name]),
                    _times(speed[name] / speed['native']),
                    f'{row["teacher@10"][name]:.3f}'.removeprefix('0'),
                    _number(scanned),
                    *((str(equal['nprobe']), _times(equal['over_native'])) if equal else ('', '')),
                ]
            )
    return table(titles, lines)


def _scaling(rows: Sequence[Row]) -> str:
    titles = ('documents', 'D', 'corpus, MiB', 'step, ms', 'encoded documents/s')
    titles += ('memory before, MiB', 'memory at its peak, MiB')
    return table(
        titles,
        (
            [
                _number(row['documents']),
                str(row['dim']),
                _number(row['corpus_mib']),
                _ms(row['step_seconds']),
                _number(row['documents_per_second']),
                *(_number(row['anonymous_mib'][name]) for name in ('before', 'peak')),
            ]
            for row in rows
        ),
    )


def _devices(rows: Sequence[Row]) -> str:
    titles = ('devices', 'D', 'B', 'step, ms', 'first loss', 'last loss', 'largest relative difference')
    return table(
        titles,
        (
            [
                *(str(row[name]) for name in ('devices', 'dim', 'batch_size')),
                _ms(row['seconds']),
                f'{row["losses"][0]:.6f}',
                f'{row["losses"][-1]:.6f}',
                f'{row["loss_difference"]:.1e}',
            ]
            for row in rows
        ),
    )


def _once(rows: Sequence[Row]) -> str:
    titles = ('documents', 'candidates', 'brought by another query too')
    titles += ('step, ms', 'each time that it is brought, ms', 'times faster')
    return table(
        titles,
        (
            [
                _number(row['documents']),
                f'`{row["mixture"]}`',
                f'{row["brought_again"]:.1%}',
                *(_ms(row['seconds'][name]) for name in ('once', 'each_time')),
                _times(row['seconds']['each_time'] / row['seconds']['once']),
            ]
            for row in rows
        ),
    )


def _input(rows: Sequence[Row]) -> str:
    titles = (
        'documents',
        'D',
        'B',
        'C',
        'input alone, batches/s',
        'without documents',
        'step alone, batches/s',
    )
    titles += ('both, batches/s', 'input, times faster than the step')
    return table(
        titles,
        (
            [
                *(_number(row[name]) for name in ('documents', 'dim', 'batch_size', 'candidates')),
                *(_number(1 / row['seconds'][name]) for name in ('input', 'ids', 'step', 'both')),
                _times(row['seconds']['step'] / row['seconds']['input']),
            ]
            for row in rows
        ),
    )


# Part -> its title and its table, in order.
TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    'step': ('Training step', _step),
    'large_step': ('Training step, all of Top-200', _large_step),
    'mining': ("Mining the teacher's Top-K", _mining),
    'large_mining': ("Mining the teacher's Top-K, once a corpus is there", _large_mining),
    'encoding': ('Encoding', _encoding),
    'choosing': ('Codes chosen for queries', _choosing),
    'clustering': ('k-means and OPQ', _clustering),
    'search': ('Search', _search),
    'scaling': ('Growing corpora', _scaling),
    'devices': ('More devices', _devices),
    'once': ('Documents that several queries bring', _once),
    'input': ('Input', _input),
}


MARKS = (*TABLES, 'floors')


def _floors(stored: Mapping[str, Any], found: Sequence[tuple[str, speed_floors.Reached]]) -> str:
    """How near to its floor each path comes, of peaks that were measured with it, and of a datasheet's."""
    sources = [name for name in ('measured', 'datasheet') if name in stored[found[0][0]]['peaks']]
    ways = [(source, products) for source in sources for products in ('float32', 'bfloat16')]
    titles = ('path', 'sizes', 's', 'TFLOP', 'GB', *(f'{source}, {products}' for source, products in ways))
    return table(
        titles,
        (
            [
                taken.path,
                taken.sizes,
                f'{taken.seconds:.3g}',
                *(f'{1e-12 * taken.floor.flops:.3g}', f'{1e-9 * taken.floor.bytes:.3g}'),
                *(f'{taken.fraction(stored[part]["peaks"][source], name):.0%}' for source, name in ways),
            ]
            for part, taken in found
        ),
    )


def tables(stored: Mapping[str, Any]) -> dict[str, str]:
    """The tables of what is stored, by `MARKS`: one for each part, and one of floors.

    Args:
      stored: what `speed.py` stored.

    Returns:
      Markdown, by name.
    """
    made = {name: make(stored[name]['rows']) for name, (_, make) in TABLES.items() if name in stored}
    if found := list(speed_floors.reached(stored)):
        made['floors'] = _floors(stored, found)
    return made


def markdown(stored: Mapping[str, Any]) -> str:
    """A line about the machine, a table for each part that is stored, and one of floors.

    Args:
      stored: what `speed.py` stored.

    Returns:
      Markdown.
    """
    machine = ', '.join(f'{name} {value}' for name, value in stored['machine'].items() if name != 'cpu')
    parts = [f'{stored["machine"]["cpu"]}; {machine}.']
    for name, made in tables(stored).items():
        heading = 'Share of the floor that is reached'
        if name in TABLES:
            heading = f'{TABLES[name][0]} ({stored[name]["cores"]} cores, {stored[name]["repeats"]} rounds)'
        parts.append(f'### {heading}\n\n{made}')
    return '\n\n'.join(parts)
