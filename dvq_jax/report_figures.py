"""The pictures of a report; the one place that needs matplotlib."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from dvq_jax.report import Report
from dvq_jax.report_losses import CODE_ERROR, DENSE_MISSED, FOUND, LIST_MISSED

INK, QUIET, INDEX, START = '#24292f', '#6b7480', '#1f6f8b', '#c08a2d'
_BASELINES = ('#8a78ad', '#6f9a72', '#b06a78', '#6d88a8', '#a08560', '#7d7d7d')
_MARKERS = 's^Dv<>pX'
# Reason -> label and colour, in the order of the bars.
REASONS = {
    FOUND: ('found in the top 10', INDEX),
    CODE_ERROR: ('code error', '#d9a05b'),
    LIST_MISSED: ('list not probed', '#b3525b'),
    DENSE_MISSED: ('dense search misses it too', '#d3d8dd'),
}
_STYLE = {
    'font.size': 10,
    'text.color': INK,
    'axes.edgecolor': '#c3c9d0',
    'axes.labelcolor': INK,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#e9ecef',
    'xtick.color': QUIET,
    'ytick.color': QUIET,
    'legend.frameon': False,
    'lines.linewidth': 2,
    'lines.markersize': 6,
}


def draw(report: Report, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Draws every picture as PNG.

    Args:
      report: what is shown.
      folder: where the files go.

    Returns:
      name -> file.
    """
    figures: dict[str, Callable[[Report], Figure]] = {
        'training': _training,
        'quality': _quality,
        'lists': _lists,
        'codewords': _codewords,
        'losses': _losses,
    }
    paths = {}
    with matplotlib.rc_context(_STYLE):
        for name, figure in figures.items():
            paths[name] = folder / f'{name}.png'
            # Without the version of matplotlib, so that the same report has the same bytes.
            figure(report).savefig(paths[name], dpi=200, metadata={'Software': None})
    return paths


def _panels(count: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9.4, height), layout='constrained')
    figure.get_layout_engine().set(wspace=0.06)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def label(metric: str) -> str:
    """A metric's name for people."""
    return metric.replace('RR@', 'MRR@').replace('teacher@', 'Teacher agreement@')


def _training(report: Report) -> Figure:
    figure, (left, right) = _panels(2, 3.1)
    lines = [line for line in report.history if 'loss' in line]
    steps = [line['step'] for line in lines]
    parts = {
        'loss': ('total', INDEX),
        'ivf_loss': ('lists alone', '#8a78ad'),
        'pq_loss': ('lists and codes', '#6f9a72'),
    }
    for name, (text, color) in parts.items():
        if lines and name in lines[0]:
            left.plot(steps, [line[name] for line in lines], color=color, label=text)
    left.set(title='Training loss', xlabel='step', ylabel='loss (mean over a batch)')
    left.set_ylim(0, left.get_ylim()[1] * 1.15)
    left.legend(loc='upper left', ncols=3, handlelength=1.2, columnspacing=1.2, fontsize=9)
    name = f'dev/{report.metric}'
    dev = [(line['step'], line[name]) for line in report.history if name in line]
    right.plot(*zip(*dev, strict=True), color=INDEX, marker='o', markersize=4)
    best = max(dev, key=lambda point: (point[1], point[0]))
    right.plot(
        *best, marker='o', markersize=11, markerfacecolor='none', markeredgecolor=INK, linestyle='none'
    )
    title = f'Dev queries: best {best[1]:.3f} at step {best[0]}'
    right.set(title=title, xlabel='step', ylabel=f'{label(report.metric)} (share)')
    right.margins(y=0.25)
    for axes in (left, right):
        axes.set_xlim(left=0 - 0.02 * axes.get_xlim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _curve(axes: Axes, results: Mapping[str, Mapping[str, float]], metric: str, **style) -> None:
    points = sorted((row['docs_scanned'], row[metric]) for row in results.values() if metric in row)
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _quality(report: Report) -> Figure:
    shown = ('RR@10', 'R@100') if report.labels else tuple(report.quality.dense)
    names = ['start (step 0)', *report.quality.baselines]
    columns = max(1, min(5, 100 // (max(map(len, names)) + 8)))
    figure, panels = _panels(len(shown), 3.4 + 0.22 * -(-(len(names) + 2) // columns))
    for axes, metric in zip(panels, shown, strict=True):
        _quality_panel(axes, report, metric)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=columns)
    return figure


def _quality_panel(axes: Axes, report: Report, metric: str) -> None:
    quality = report.quality
    ours = {'color': INDEX, 'marker': 'o', 'label': f'index (step {report.step})', 'zorder': 4}
    _curve(axes, quality.index, metric, **ours)
    if quality.start:
        _curve(axes, quality.start, metric, color=START, marker='o', label='start (step 0)', zorder=3)
    axes.axhline(quality.dense[metric], color=INK, linestyle='--', linewidth=1.4, label='dense search')
    for row, (name, results) in enumerate(quality.baselines.items()):
        color, marker = _BASELINES[row % len(_BASELINES)], _MARKERS[row % len(_MARKERS)]
        _curve(axes, results, metric, color=color, marker=marker, markersize=5, linewidth=1.2, label=name)
    for nprobe, row in quality.index.items():
        axes.annotate(
            f'P {nprobe}',
            (row['docs_scanned'], row[metric]),
            xytext=(-3, 7),
            textcoords='offset points',
            ha='right',
            fontsize=8,
            color=INDEX,
            bbox={'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 0.5},
            zorder=5,
        )
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    name = label(metric)
    axes.set(title=name, xlabel='documents scanned a query (mean)', ylabel=f'{name} (share)')
    axes.margins(x=0.1, y=0.12)
    axes.set_ylim(bottom=0)


def _lists(report: Report) -> Figure:
    sizes = report.contents.list_sizes
    figure, (axes,) = _panels(1, 2.9)
    bins = np.linspace(0, sizes.max() + 1, min(int(sizes.max()) + 2, 60))
    heights, _, _ = axes.hist(sizes, bins=bins, color=INDEX, edgecolor='white', linewidth=0.5)
    axes.axvline(sizes.mean(), color=INK, linestyle='--', linewidth=1.4)
    top = axes.get_ylim()[1]
    axes.set_ylim(top=top * 1.15)
    axes.annotate(
        f'mean {sizes.mean():,.0f}', (sizes.mean(), top * 1.08), xytext=(6, 0), textcoords='offset points'
    )
    axes.annotate(
        f'longest {sizes.max():,}',
        (sizes.max() + 1, heights[-1]),
        xytext=(0, 5),
        textcoords='offset points',
        ha='right',
    )
    axes.set(title='Lists by size', xlabel='documents in the list', ylabel='lists')
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _codewords(report: Report) -> Figure:
    contents = report.contents
    figure, (left, right) = _panels(2, 2.9)
    books = np.arange(1, len(contents.used) + 1)
    most = np.log2(contents.codewords)
    left.bar(books, contents.entropy, color=INDEX, width=0.75)
    left.axhline(most, color=INK, linestyle='--', linewidth=1.4)
    left.annotate(
        f'all {contents.codewords} used alike: {most:g} bits',
        (books[-1] + 0.4, most),
        xytext=(0, 4),
        textcoords='offset points',
        ha='right',
    )
    left.set_ylim(0, most * 1.18)
    left.set(title='Entropy of the codes', xlabel='codebook', ylabel='entropy (bits)')
    right.bar(books, contents.used, color=INDEX, width=0.75)
    right.set_ylim(0, 1.18)
    right.set_yticks(np.linspace(0, 1, 5))
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set(title='Codewords in use', xlabel='codebook', ylabel='share of codewords used')
    for axes in (left, right):
        axes.grid(axis='x', visible=False)
        axes.set_xlim(0.3, books[-1] + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def _losses(report: Report) -> Figure:
    counts = report.losses.counts
    figure, (axes,) = _panels(1, 1.3 + 0.38 * len(counts))
    names = [f'P {nprobe}' for nprobe in counts]
    left = np.zeros(len(counts))
    for reason, (text, color) in REASONS.items():
        shares = np.array([row[reason] / max(row.sum(), 1) for row in counts.values()])
        axes.barh(names, shares, left=left, color=color, label=text, height=0.7)
        ink = INK if reason in (DENSE_MISSED, CODE_ERROR) else 'white'
        for row, (begin, share) in enumerate(zip(left, shares, strict=True)):
            if share >= 0.03:
                axes.text(
                    begin + share / 2, row, f'{share:.0%}', ha='center', va='center', color=ink, fontsize=9
                )
        left += shares
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False)
    axes.tick_params(axis='y', length=0)
    axes.set(xlabel='queries', ylabel='lists probed')
    figure.legend(loc='outside upper left', ncols=4)
    return figure
