"""The tables and plots of `quality.py`, of what it stored."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

DENSE = 'dense flat'
_OURS = 'ours'
_SHOWN = {'RR@10': 'MRR@10', 'R@10': 'R@10', 'R@100': 'R@100', 'teacher@10': 'teacher@10'}
_PLOTTED_BYTES, _PLOTTED_PROBES = 16, 10
_INK, _QUIET = '#24292f', '#6b7480'
_PEERS = ('#8a78ad', '#b06a78', '#6f9a72', '#a08560', '#c98b2b', '#5d9aa5', '#7d7d7d', '#b07aa1')
_BLUES = (0.35, 1.0)
_STYLE = {
    'axes.axisbelow': True,
    'axes.edgecolor': '#c3c9d0',
    'axes.grid': True,
    'axes.labelcolor': _INK,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'font.size': 10,
    'grid.color': '#e9ecef',
    'legend.frameon': False,
    'text.color': _INK,
    'xtick.color': _QUIET,
    'ytick.color': _QUIET,
}

Rows = Mapping[str, Mapping[str, Any]]


def rows_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The rows, without the settings that stand beside them."""
    return {name: row for name, row in stored.items() if name != 'settings'}


def _averaged(rows: Iterable[Mapping[str, Any]], probes: int, metric: str) -> tuple[float, float] | None:
    """Mean over seeds and largest distance from it; None where it was not measured."""
    values = [row['nprobe'].get(str(probes), {}).get(metric) for row in rows]
    values = [value for value in values if value is not None]
    if not values:
        return None
    mean = float(np.mean(values))
    return mean, float(np.max(np.abs(np.subtract(values, mean))))


def _by_method(rows: Rows, size: int, codewords: int) -> dict[str, list[Mapping[str, Any]]]:
    """Each method's seeds at a size, dense search first: it has one size only."""
    grouped: dict[str, list] = {}
    for row in rows.values():
        if row['method'] == DENSE or (row['bytes'], row['codewords']) == (size, codewords):
            grouped.setdefault(row['method'], []).append(row)
    return dict(sorted(grouped.items(), key=lambda item: item[0] != DENSE))


def _sizes(rows: Rows) -> list[tuple[int, int]]:
    """(bytes, K) that were measured, larger K first."""
    found = {(row['bytes'], row['codewords']) for row in rows.values() if row['method'] != DENSE}
    return sorted(found, key=lambda size: (-size[1], size[0]))


def markdown(stored: Mapping[str, Any]) -> str:
    """A table for each number of bytes and codewords: a line a method and P, the best index of a P in bold.

    Args:
      stored: what `quality.py` stored.

    Returns:
      Markdown; '±' is the largest distance of a seed from the mean.
    """
    rows, settings = rows_of(stored), stored['settings']
    return '\n\n'.join(
        f'### {size} bytes a document, K {codewords}\n\n'
        + _table(_by_method(rows, size, codewords), settings)
        for size, codewords in _sizes(rows)
    )


def _table(methods: Mapping[str, list], settings: Mapping[str, Any]) -> str:
    titles = ['P', 'index', *_SHOWN.values(), 'documents scanned', 'bytes']
    lines = ['| ' + ' | '.join(titles) + ' |', '|---:|---|' + '---:|' * (len(titles) - 2)]
    for probes in settings['nprobe']:
        best = {}
        for metric in _SHOWN:
            found = [_averaged(seeds, probes, metric) for name, seeds in methods.items() if name != DENSE]
            best[metric] = max((value[0] for value in found if value), default=None)
        for name, seeds in methods.items():
            if _averaged(seeds, probes, 'docs_scanned') is None:
                continue
            label = f'all {probes}' if probes == settings['lists'] else str(probes)
            bold = {} if name == DENSE else best
            cells = [_cell(_averaged(seeds, probes, metric), bold.get(metric)) for metric in _SHOWN]
            scanned = _averaged(seeds, probes, 'docs_scanned')[0]
            size = _size(seeds[0])
            cells = [label, name, *cells, f'{scanned:.0f}', size]
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _size(row: Mapping[str, Any]) -> str:
    """Bytes of a document's codes, and the row number that a second copy takes with it."""
    numbers = row['bytes'] + row['extra_bytes'] - row['bytes_per_document']
    return f'{row["bytes_per_document"]:g}' + (f' + {numbers:g}' if numbers else '')


def _cell(value: tuple[float, float] | None, best: float | None) -> str:
    if value is None:
        return '–'
    text = _short(value[0])
    text = f'**{text}**' if value[0] == best else text
    return f'{text} ± {_short(value[1])}' if value[1] else text


def _short(value: float) -> str:
    return f'{value:.3f}'.removeprefix('0')


def draw(stored: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws recall against documents scanned, at 16 bytes, and MRR@10 against bytes, a panel for each K.

    Args:
      stored: what `quality.py` stored.
      folder: where the PNGs go.

    Returns:
      The files.
    """
    rows, settings = rows_of(stored), stored['settings']
    styles = _styles(list(dict.fromkeys(row['method'] for row in rows.values())))
    codewords = sorted({words for _, words in _sizes(rows)}, reverse=True)
    panels: dict[str, list[Callable[[Axes], None]]] = {
        'quality_recall.png': [
            lambda axes, words=words: _recall_panel(axes, rows, settings, words, styles)
            for words in codewords
            if any(size == (_PLOTTED_BYTES, words) for size in _sizes(rows))
        ],
        'quality_bytes.png': [
            lambda axes, words=words, probes=probes: _bytes_panel(axes, rows, settings, words, probes, styles)
            for words in codewords
            for probes in (_PLOTTED_PROBES, settings['lists'])
            if probes in settings['nprobe']
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, drawn in panels.items():
        if drawn:
            files.append(folder / name)
            _save(drawn, files[-1])
    return files


def _save(drawn: list[Callable[[Axes], None]], path: pathlib.Path) -> None:
    across = min(2, len(drawn))
    down = -(-len(drawn) // across)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4 * across + 2.6, 4.4 * down), layout='constrained')
        grid = figure.subplots(down, across, squeeze=False)
        for axes, panel in zip(grid.flat, drawn, strict=False):
            panel(axes)
        for axes in list(grid.flat)[len(drawn) :]:
            axes.set_visible(False)
        lines = {}
        for axes in grid.flat:
            lines |= {line.get_label(): line for line in axes.get_lines() if line.get_label()[0] != '_'}
        figure.legend(lines.values(), lines.keys(), loc='outside right center')
        figure.savefig(path, dpi=150)


def _styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Ours in blues that darken with each ingredient, peers thin and each in its own colour and marker."""
    ours = [name for name in methods if name.startswith(_OURS)]
    peers = [name for name in methods if name not in (DENSE, *ours)]
    blues = matplotlib.colormaps['Blues'](np.linspace(*_BLUES, len(ours)))
    styles = {DENSE: {'color': _INK, 'linestyle': '--', 'linewidth': 1.4}}
    for name, blue in zip(ours, blues, strict=True):
        styles[name] = {'color': blue, 'marker': 'o', 'markersize': 6, 'linewidth': 2, 'zorder': 4}
    for row, name in enumerate(peers):
        color, marker = _PEERS[row % len(_PEERS)], 's^Dv<>pX'[row % 8]
        styles[name] = {'color': color, 'marker': marker, 'markersize': 5, 'linewidth': 1.2, 'zorder': 3}
    return styles


def _recall_panel(
    axes: Axes, rows: Rows, settings: Mapping[str, Any], codewords: int, styles: Mapping[str, dict]
) -> None:
    for name, seeds in _by_method(rows, _PLOTTED_BYTES, codewords).items():
        points = []
        for probes in settings['nprobe']:
            recall = _averaged(seeds, probes, 'R@100')
            if recall is not None:
                points.append((_averaged(seeds, probes, 'docs_scanned')[0], recall[0]))
        _line(
            axes, name, points, styles, note=f' ({_size(seeds[0])} bytes)' if seeds[0]['extra_bytes'] else ''
        )
    axes.set_xscale('log')
    axes.set(xlabel='documents scanned for a query', ylabel='R@100')
    axes.set_title(f'R@100, {_PLOTTED_BYTES} bytes a document, K {codewords}')


def _bytes_panel(
    axes: Axes,
    rows: Rows,
    settings: Mapping[str, Any],
    codewords: int,
    probes: int,
    styles: Mapping[str, dict],
) -> None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for size in [size for size, words in _sizes(rows) if words == codewords]:
        for name, seeds in _by_method(rows, size, codewords).items():
            shown = settings['lists'] if name == DENSE else probes
            if (value := _averaged(seeds, shown, 'RR@10')) is not None:
                total = size if name == DENSE else seeds[0]['bytes_per_document']
                lines.setdefault(name, []).append((total, value[0]))
    for name, points in lines.items():
        _line(axes, name, points, styles)
    ticks = sorted({total for points in lines.values() for total, _ in points})
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel='bytes a document', ylabel='MRR@10')
    label = f'all {probes}' if probes == settings['lists'] else str(probes)
    axes.set_title(f'MRR@10, {label} lists probed, K {codewords}')


def _line(
    axes: Axes, name: str, points: list[tuple[float, float]], styles: Mapping[str, dict], note: str = ''
) -> None:
    """A method's curve; dense search is a level, whatever it scans and costs."""
    if name == DENSE and points:
        axes.axhline(points[0][1], label=name, **styles[name])
    elif points:
        axes.plot(*zip(*points, strict=True), label=name + note, **styles[name])
