"""Prints the tables of docs/experiments.md from the stored results.

python benchmarks/tables.py docs/results/losses.json
"""

import json
import pathlib
import sys

SHOWN = ('RR@10', 'R@10', 'R@100', 'teacher@10')


def markdown(rows: dict[str, dict]) -> str:
    """A row a run, its metrics at each nprobe, and how long it trained.

    Args:
      rows: what `ablation.py` stored.

    Returns:
      A Markdown table.
    """
    probes = list(next(iter(rows.values()))['nprobe'])
    titles = [f'{metric.replace("RR@", "MRR@")}, P {probe}' for probe in probes for metric in SHOWN]
    lines = ['| | ' + ' | '.join(titles) + ' | seconds |', '|---|' + '---:|' * (len(titles) + 1)]
    for name, row in rows.items():
        cells = [f'{row["nprobe"][probe][metric]:.3f}'.lstrip('0') for probe in probes for metric in SHOWN]
        lines.append(f'| {name} | ' + ' | '.join(cells) + f' | {row["train_seconds"]:.0f} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    for path in sys.argv[1:]:
        print(markdown(json.loads(pathlib.Path(path).read_text(encoding='utf-8'))))
