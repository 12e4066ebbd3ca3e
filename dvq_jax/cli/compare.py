"""Prints results side by side, as a Markdown table.

python -m dvq_jax.cli.compare --result="before=before.json" --result="after=after.json"
"""

import json
import pathlib

from absl import flags

from dvq_jax.cli import run
from dvq_jax.errors import InputError

_RESULT = flags.DEFINE_multi_string(
    'result',
    None,
    'NAME=FILE, a row: what `search` printed, or the dense.json of `pydoc_search`.',
    required=True,
)
# What a result file calls it -> column and format.
_COLUMNS = {
    'RR@10': ('MRR@10', '.3f'),
    'R@10': ('R@10', '.3f'),
    'R@100': ('R@100', '.3f'),
    'bytes_per_document': ('bytes/document', 'g'),
    'ms_per_query': ('ms/query', '.3f'),
}


def _read(text: str) -> tuple[str, dict[str, float]]:
    name, _, path = text.partition('=')
    try:
        # A command prints its result as the last line; a file may hold it alone.
        content = pathlib.Path(path).read_text(encoding='utf-8').strip()
        result = json.loads(content if content.startswith('{') else content.splitlines()[-1])
        return name, {key: result[key] for key in _COLUMNS}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f'--result={text}: not a result of `search` ({error}); give NAME=FILE.') from error


def main() -> dict:
    """Reads, prints a row each, and returns them."""
    rows = dict(map(_read, _RESULT.value))
    width = max(map(len, rows))
    titles = [title for title, _ in _COLUMNS.values()]
    print(f'| {"":{width}} | ' + ' | '.join(titles) + ' |')
    print(f'|{"-" * (width + 2)}|' + '|'.join('-' * (len(title) + 1) + ':' for title in titles) + '|')
    for name, values in rows.items():
        cells = [f'{values[key]:>{len(title)}{form}}' for key, (title, form) in _COLUMNS.items()]
        print(f'| {name:{width}} | ' + ' | '.join(cells) + ' |')
    return rows


if __name__ == '__main__':
    run(main)
