"""Tables in Markdown; as a command, those of docs/experiments.md from the stored results.

python benchmarks/tables.py docs/results/losses.json
"""

import json
import pathlib
import sys
from collections.abc import Iterable, Sequence

SHOWN = ('RR@10', 'R@10', 'R@100', 'teacher@10')


def table(titles: Sequence[str], lines: Iterable[Sequence[str]], *, left: int = 0) -> str:
    """A table whose columns, but the first so many, stand to the right, as numbers do.

    Args:
      titles: of the columns.
      lines: a cell for each column.
      left: columns of words.

    Returns:
      Markdown.
    """
    sides = '|---' * left + '|---:' * (len(titles) - left) + '|'
    first, *others = (f'| {" | ".join(line)} |' for line in (titles, *lines))
    return '\n'.join([first, sides, *others])


def markdown(rows: dict[str, dict]) -> str:
    """A row a run, its metrics at each nprobe, and how long it trained.

    Args:
      rows: what `ablation.py` stored.

    Returns:
      A Markdown table.
    """
    probes = list(dict.fromkeys(probe for row in rows.values() for probe in row['nprobe']))
    titles = [f'{metric.replace("RR@", "MRR@")}, P {probe}' for probe in probes for metric in SHOWN]
    lines = []
    for name, row in rows.items():
        cells = [_cell(row['nprobe'].get(probe, {}).get(metric)) for probe in probes for metric in SHOWN]
        lines.append([name, *cells, f'{row["train_seconds"]:.0f}'])
    return table(('', *titles, 'seconds'), lines, left=1)


def _cell(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'.lstrip('0')


if __name__ == '__main__':
    for path in sys.argv[1:]:
        print(markdown(json.loads(pathlib.Path(path).read_text(encoding='utf-8'))))
