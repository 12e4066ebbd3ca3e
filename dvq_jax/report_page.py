"""A report as one HTML page that needs nothing beside it: text, tables and the pictures themselves."""

import base64
import math
import os
import pathlib
import shutil
from collections.abc import Sequence
from html import escape

from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.report import Report
from dvq_jax.report_figures import REASONS, draw, label
from dvq_jax.report_losses import CODE_ERROR, DENSE_MISSED, FOUND, LIST_MISSED

PAGE = 'report.html'
_SHOWN = ('RR@10', 'R@10', 'R@100', 'teacher@10')
_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #24292f; font: 15px/1.55 system-ui, -apple-system, 'Segoe UI',
  Roboto, 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1000px; box-sizing: border-box; margin: 0 auto; padding: 36px 32px 56px; background: #fff; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 44px 0 10px; padding-top: 18px; border-top: 1px solid #e3e6ea; }
p { margin: 8px 0; max-width: 78ch; }
.quiet, figcaption { color: #6b7480; font-size: 13px; }
.lead { font-size: 17px; line-height: 1.5; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 22px 0; padding: 0; list-style: none; }
.tiles li { flex: 1 1 170px; padding: 12px 16px; background: #f4f7f9; border-radius: 8px; }
.tiles b { display: block; font-size: 25px; line-height: 1.3; color: #1f6f8b; }
.tiles span { display: block; color: #6b7480; font-size: 13px; line-height: 1.4; }
figure { margin: 14px 0; }
img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 14px 0; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; text-align: left; vertical-align: bottom; }
th, td { padding: 5px 10px; border-bottom: 1px solid #e9ecef; }
td { vertical-align: top; }
.n { text-align: right; white-space: nowrap; }
.group { text-align: center; }
.ours { font-weight: 600; color: #1f6f8b; }
.sub { color: #6b7480; font-weight: 400; }
.text { display: block; color: #6b7480; font-size: 12.5px; line-height: 1.35; max-width: 44ch;
  overflow-wrap: anywhere; }
tr.total td { border-top: 2px solid #c3c9d0; }
"""


def may_write(out: str | os.PathLike, workdir: str | os.PathLike) -> pathlib.Path:
    """Checks, before the work, that a report can go to a folder.

    Args:
      out: the folder.
      workdir: the run's; a report inside it is replaced by a new one, elsewhere nothing is.

    Returns:
      The folder.

    Raises:
      InputError: there is something else, or a report outside the run's folder.
    """
    out, workdir = pathlib.Path(out), pathlib.Path(workdir)
    if not out.exists():
        files.make_folder(out.parent)
        return out
    ours = out.is_dir() and (out / PAGE).exists()
    ours = ours and all(path.suffix == '.png' or path.name == PAGE for path in out.iterdir())
    if not ours or workdir.resolve() not in out.resolve().parents:
        raise InputError(f'{out}: exists already; remove it or give another --out.')
    return out


def write(report: Report, out: str | os.PathLike) -> pathlib.Path:
    """Writes the page and its pictures into a folder, which appears when they are complete.

    Args:
      report: from `report.measure`.
      out: the folder to create, or to replace, see `may_write`.

    Returns:
      The page.

    Raises:
      InputError: the folder cannot be written.
    """
    out = may_write(out, report.workdir)
    fresh, old = (out.with_name(f'.{out.name}.{which}') for which in ('new', 'old'))
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    with files.atomic_folder(fresh) as folder:
        pictures = draw(report, folder)
        (folder / PAGE).write_text(page(report, pictures), encoding='utf-8')
    if out.exists():
        os.replace(out, old)
    os.replace(fresh, out)
    shutil.rmtree(old, ignore_errors=True)
    return out / PAGE


def page(report: Report, pictures: dict[str, pathlib.Path]) -> str:
    """The HTML of a report.

    Args:
      report: what is shown.
      pictures: name -> PNG file, from `report_figures.draw`.

    Returns:
      The page.
    """

    def picture(name: str, alt: str) -> str:
        data = base64.b64encode(pictures[name].read_bytes()).decode()
        return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}"></figure>'

    name = escape(report.workdir.name)
    parts = [
        f'<h1>Index report: {name}</h1>',
        f'<p class="quiet">{_subtitle(report)}</p>',
        f'<p class="lead">{_sentence(report)}</p>',
        _tiles(report),
        _quality_table(report),
        '<h2>Training</h2>',
        picture('training', 'Training loss and the dev metric by step'),
        '<h2>Quality against documents scanned</h2>',
        picture('quality', 'Quality against documents scanned a query'),
        f'<p class="quiet">{_baseline_note(report)}</p>',
        '<h2>Lists</h2>',
        f'<p>{_lists_note(report)}</p>',
        picture('lists', 'Histogram of the sizes of lists'),
        '<h2>Codes</h2>',
        f'<p>{_codes_note(report)}</p>',
        picture('codewords', 'Entropy and use of the codewords of each codebook'),
        '<h2>Where answers are lost</h2>',
        f'<p>{_losses_note(report)}</p>',
        picture('losses', 'Share of queries by what happened to their answer'),
        _losses_table(report),
        *_worst(report),
    ]
    body = '\n'.join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>Index report: {name}</title>\n<style>{_CSS}</style>\n</head>\n'
        f'<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _subtitle(report: Report) -> str:
    labels = (
        'judged by their labels'
        if report.labels
        else "without labels: the teacher's first document is taken for the answer"
    )
    return (
        f'Step {report.step} of {escape(str(report.workdir))} · {report.documents:,} documents, '
        f'{len(report.contents.list_sizes):,} lists · {report.queries:,} queries from '
        f'{escape(report.source)}, {labels}.'
    )


def _headline(report: Report) -> str:
    """The metric that sentences speak of."""
    return 'RR@10' if report.labels else next(iter(report.quality.dense))


def _sentence(report: Report) -> str:
    metric, quality, main = _headline(report), report.quality, str(report.main)
    ours, dense = quality.index[main][metric], quality.dense[metric]
    scanned = quality.index[main]['docs_scanned']
    text = (
        f'With {main} of {len(report.contents.list_sizes):,} lists probed, this index reaches '
        f'{label(metric)} {ours:.3f}, {ours / dense:.0%} of exact search ({dense:.3f}), with '
        f'{report.bytes_per_document:g} bytes a document instead of {report.dense_bytes:,}, scanning '
        f'{scanned:,.0f} documents a query instead of {report.documents:,}.'
    )
    if not quality.start:
        return text
    before = quality.start[main][metric]
    if ours <= before:
        return f'{text} Training has not improved on the start, {before:.3f}.'
    won = (
        f', closing {(ours - before) / (dense - before):.0%} of the gap to exact search'
        if dense > before
        else ''
    )
    return f'{text} Training raised it from {before:.3f}{won}.'


def _tiles(report: Report) -> str:
    main, quality = str(report.main), report.quality
    shown = [name for name in _SHOWN if name in quality.dense][:3]
    tiles = []
    for metric in shown:
        start = f'start {quality.start[main][metric]:.3f} · ' if quality.start else ''
        note = f'{start}dense {quality.dense[metric]:.3f}'
        tiles.append((f'{quality.index[main][metric]:.3f}', f'{label(metric)}, P {main}', note))
    ratio = report.dense_bytes / report.bytes_per_document
    what = 'bytes of codes a document' + (f', {report.copies} copies' if report.copies > 1 else '')
    tiles.append(
        (f'{report.bytes_per_document:g}', what, f'dense {report.dense_bytes:,} · {ratio:.3g} times less')
    )
    items = (
        f'<li><b>{value}</b>{escape(what)}<span>{escape(note)}</span></li>' for value, what, note in tiles
    )
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _table(head: str, rows: Sequence[str]) -> str:
    body = ''.join(rows)
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def _quality_table(report: Report) -> str:
    quality = report.quality
    shown = [name for name in _SHOWN if name in quality.dense]
    columns = ['start', 'index'] if quality.start else ['index']
    head = '<tr><th class="n" rowspan="2">P</th><th class="n" rowspan="2">Documents<br>scanned</th>'
    head += ''.join(f'<th class="group" colspan="{len(columns)}">{label(name)}</th>' for name in shown)
    names = ''.join(f'<th class="n sub">{name}</th>' for name in columns)
    head += f'</tr><tr>{names * len(shown)}</tr>'
    rows = []
    for nprobe, values in quality.index.items():
        cells = f'<td class="n">{nprobe}</td><td class="n">{values["docs_scanned"]:,.0f}</td>'
        for name in shown:
            if quality.start:
                cells += f'<td class="n">{quality.start[nprobe][name]:.3f}</td>'
            cells += f'<td class="n ours">{values[name]:.3f}</td>'
        rows.append(f'<tr>{cells}</tr>\n')
    dense = ''.join(
        f'<td class="n" colspan="{len(columns)}">{quality.dense[name]:.3f}</td>' for name in shown
    )
    rows.append(f'<tr class="total"><td>dense</td><td class="n">{report.documents:,}</td>{dense}</tr>\n')
    note = 'P: lists probed. Dense: exact search with the embeddings, the teacher. '
    note += "Teacher agreement@10: the share of the teacher's first 10 that is among the index's first 10."
    return f'{_table(head, rows)}\n<p class="quiet">{note}</p>'


def _baseline_note(report: Report) -> str:
    if not report.quality.baselines:
        return f'No baselines of {report.bytes_per_document:g} bytes a document were given.'
    return (
        f'Other indexes have {report.bytes_per_document:g} bytes a document too; their numbers are those of '
        'the file of baselines, measured on the queries that it was made with.'
    )


def _lists_note(report: Report) -> str:
    sizes = report.contents.list_sizes
    imbalance = float((sizes.astype(float) ** 2).sum() * len(sizes) / sizes.sum() ** 2)
    empty = int((sizes == 0).sum())
    empty = f'{empty} are empty' if empty else 'none is empty'
    return (
        f'{len(sizes):,} lists hold {sizes.mean():,.0f} documents each on average; the longest holds '
        f'{sizes.max():,}, {empty}. Imbalance {imbalance:.2f}: the list of a '
        'random document is that many times longer than with equal lists (1 is best).'
    )


def _codes_note(report: Report) -> str:
    contents = report.contents
    most = math.log2(contents.codewords)
    return (
        f'{len(contents.used)} codebooks of {contents.codewords} codewords. On average '
        f'{contents.used.mean():.1%} of the codewords are used, and a code carries '
        f'{contents.entropy.mean():.2f} of {most:g} bits (least: {contents.entropy.min():.2f}).'
    )


def _losses_note(report: Report) -> str:
    counts, total = report.losses.counts[report.main], max(report.queries, 1)
    found, missed, code, dense = (
        f'{counts[reason] / total:.1%}' for reason in (FOUND, LIST_MISSED, CODE_ERROR, DENSE_MISSED)
    )
    text = (
        f'With {report.main} lists probed, the answer is in the top 10 for {found} of the queries. For '
        f'{missed} exact search has it there but its list is not probed; for {code} it is scanned but its '
        f'codes score it too low; for {dense} exact search does not have it there either.'
    )
    if counts[LIST_MISSED]:
        text += (
            f' Of the {counts[LIST_MISSED]:,} whose list is missed, {report.losses.also_code_error:,} would '
            'stay below rank 10 even with all lists probed.'
        )
    return text


def _losses_table(report: Report) -> str:
    head = '<tr><th class="n">P</th>'
    head += ''.join(
        f'<th class="n" colspan="2">{text[0].upper() + text[1:]}</th>' for text, _ in REASONS.values()
    )
    rows = []
    for nprobe, counts in report.losses.counts.items():
        total = max(counts.sum(), 1)
        cells = ''.join(
            f'<td class="n">{counts[reason]:,}</td><td class="n sub">{counts[reason] / total:.1%}</td>'
            for reason in REASONS
        )
        rows.append(f'<tr><td class="n">{nprobe}</td>{cells}</tr>\n')
    return _table(f'{head}</tr>', rows)


def _worst(report: Report) -> list[str]:
    title = f'<h2>The worst queries at P {report.main}</h2>'
    if not report.losses.worst:
        return [title, '<p>None: the index has every answer that exact search has in its top 10.</p>']
    note = (
        'Answers that exact search ranks best and this index misses, those furthest off first. The rank of a '
        f'list is its place among those that the query probes; above {report.main} it is not reached.'
    )
    titles = ('Dense<br>rank', 'Rank with<br>all lists', 'Rank of<br>its list')
    head = '<tr><th>Query</th><th>Answer</th>' + ''.join(f'<th class="n">{text}</th>' for text in titles)
    rows = []
    for lost in report.losses.worst:
        reason = REASONS[lost.reason][0]
        if lost.reason == LIST_MISSED and lost.full_rank > 10:
            reason += ', code error too'
        cells = _named(lost.query, lost.query_text) + _named(lost.doc, lost.doc_text)
        for rank in (lost.dense_rank, lost.full_rank, lost.list_rank):
            cells += f'<td class="n">{rank:,}</td>'
        rows.append(f'<tr>{cells}<td>{reason}</td></tr>\n')
    return [title, f'<p>{note}</p>', _table(f'{head}<th>Lost by</th></tr>', rows)]


def _named(name: str, text: str) -> str:
    text = ' '.join(text.split())
    text = text if len(text) <= 140 else f'{text[:139].rstrip()}…'
    more = f'<span class="text">{escape(text)}</span>' if text else ''
    return f'<td>{escape(name)}{more}</td>'
