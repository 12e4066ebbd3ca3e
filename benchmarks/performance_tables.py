"""Puts what the benchmarks stored into docs/performance.md, each table after its mark `<!-- table: NAME -->`.

python benchmarks/performance_tables.py
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import floors
import speed_report
from tables import table

_DOCS = pathlib.Path(__file__).parent.parent / 'docs'
_GIB = 2**30
_SMALL = 10 * 2**20  # bytes; no device is short of a step that takes less

Stored = Mapping[str, Any]


def step_memory(stored: Stored) -> str:
    """How many steps the formula predicts within 20 %, and the extremes, by what `step_memory.py` stored."""
    ways: dict[str, list[float]] = {}
    for row in stored['rows']:
        if row['planned'] >= _SMALL:
            way = f'{row["estimator"]}, lists {"dynamic" if row["dynamic"] else "frozen"}'
            ways.setdefault(way, []).append(row['predicted'] / row['planned'])
    lines = []
    for way, ratios in sorted(ways.items()):
        within = sum(0.8 <= ratio <= 1.2 for ratio in ratios)
        lines.append([way, *map(str, (len(ratios), within)), f'{min(ratios):.2f}', f'{max(ratios):.2f}'])
    return table(('step', 'drawn', 'within 20 %', 'least of the plan', 'most'), lines, left=1)


def compiled(stored: Stored) -> str:
    """The memory of a device, of one and of four, and what the formula says, by what `compiled.py` stored."""
    lines = []
    for name in dict.fromkeys(row['name'] for row in stored['rows']):
        rows = [row for row in stored['rows'] if row['name'] == name]
        cells = [row.get(key) for row in rows for key in ('bytes', 'predicted')]
        lines.append([name, *('' if size is None else f'{size / _GIB:.2f}' for size in cells)])
    titles = ('function', 'memory of one, GiB', 'formula', 'of each of four', 'formula')
    return table(titles, lines, left=1)


def commands(stored: Stored) -> str:
    """What each command is projected to take, and took, by what `msmarco_size.py` stored."""
    took = stored.get('all_seconds', {})
    lines = [
        [command, f'{seconds / 60:.2f}', f'{took[command] / 60:.2f}' if took else '']
        for command, seconds in stored['projected_seconds'].items()
    ]
    whole = [sum(seconds.values()) / 60 for seconds in (stored['projected_seconds'], took)]
    lines.append(['all', f'{whole[0]:.2f}', f'{whole[1]:.2f}' if took else ''])
    return table(('command', 'projected, minutes', 'took, minutes'), lines, left=1)


def _h100(stored: Stored) -> str:
    """Seconds of what ran on a GPU, before and after it got a way of its own, and the share of the floor."""
    lines = []
    for row in stored['rows']:
        floor = getattr(floors, row['floor'])(**row['sizes'])
        peaks, ways = floors.Peaks(**stored['peaks']), ('float32', 'bfloat16')
        shares = [
            f'{floor.seconds(peaks, way) / row["seconds"]:.0%}' if way in row.get('floors', ways) else ''
            for way in ways
        ]
        before = f'{1e3 * row["before"]:.2f}' if 'before' in row else ''
        lines.append([row['path'], before, f'{1e3 * row["seconds"]:.2f}', *shares])
    titles = ('path', 'before, ms', 'ms', 'of the floor, float32', 'of the floor, bfloat16')
    return table(titles, lines, left=1)


def _h100_msmarco(stored: Stored) -> str:
    """Stages that a run had finished, by what its stopwatch told as they ended."""
    ended = (re.fullmatch(r'([a-zA-Z -]+): ([0-9.]+) s', line) for line in stored['msmarco']['log'])
    calls: dict[str, list[float]] = {}
    for found in filter(None, ended):
        calls.setdefault(found[1], []).append(float(found[2]))
    lines = [[name, str(len(seconds)), f'{sum(seconds):.1f}'] for name, seconds in calls.items()]
    return table(('stage', 'times', 's, all together'), lines, left=1)


def _memory(stored: Stored) -> str:
    names = {'prepare': '`prepare`', 'train': '`train`, which encodes it twice', 'export': '`export`'}
    lines = [[title, f'{stored[name]["anonymous_gib"]:.2f}'] for name, title in names.items()]
    return table(('', 'anonymous memory, GiB'), lines, left=1)


def _text_encoder(stored: Stored) -> str:
    speeds = stored['texts_per_second']
    best = max(speed for name, speed in speeds.items() if name != 'ours')
    lines = [[name, f'{speed:.0f}', f'{speed / best:.2f} ×'] for name, speed in speeds.items()]
    return table(('', 'texts/s', 'times faster than PyTorch at its best'), lines, left=1)


# Mark -> the file of results, and the table that it makes.
_TABLES: dict[str, tuple[str, Callable[[Stored], str]]] = {
    **{
        name: ('speed', lambda stored, name=name: speed_report.tables(stored)[name])
        for name in speed_report.MARKS
    },
    'step_memory': ('step_memory', step_memory),
    'step_memory_h100': ('step_memory_h100', step_memory),
    'step_memory_v5e': ('step_memory_v5e', step_memory),
    'compiled': ('compiled', compiled),
    'compiled_h100': ('compiled_h100', compiled),
    'msmarco_size_cpu': ('msmarco_size_cpu', commands),
    'h100': ('h100', _h100),
    'h100_msmarco': ('h100', _h100_msmarco),
    'memory': ('memory', _memory),
    'text_encoder': ('text_encoder', _text_encoder),
}


def filled(text: str, results: pathlib.Path = _DOCS / 'results') -> str:
    """A text with its tables as they are stored.

    Args:
      text: Markdown, with marks.
      results: the folder of JSON files.

    Returns:
      The text; what stood as a table after each mark is replaced.

    Raises:
      KeyError: a mark that no benchmark knows.
    """

    def put(found: re.Match) -> str:
        name, make = _TABLES[found[1]]
        stored = json.loads((results / f'{name}.json').read_text(encoding='utf-8'))
        return f'<!-- table: {found[1]} -->\n{make(stored)}\n'

    return re.sub(r'<!-- table: (\w+) -->\n(?:\|.*\n)*', put, text)


if __name__ == '__main__':
    path = _DOCS / 'performance.md'
    path.write_text(filled(path.read_text(encoding='utf-8')), encoding='utf-8')
