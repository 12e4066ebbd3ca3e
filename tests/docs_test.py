import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import performance_tables

ROOT = pathlib.Path(__file__).parent.parent


def test_the_tables_of_performance_md_are_what_benchmarks_stored():
    text = (ROOT / 'docs' / 'performance.md').read_text(encoding='utf-8')
    assert performance_tables.filled(text) == text
    marks = {line.split()[2] for line in text.splitlines() if line.startswith('<!-- table: ')}
    assert marks == set(performance_tables._TABLES)


def test_a_table_is_replaced_and_the_text_around_it_stays(tmp_path):
    stored = {'prepare': 1.5, 'train': 2, 'export': 0.25}
    stored = {command: {'anonymous_gib': size} for command, size in stored.items()}
    (tmp_path / 'memory.json').write_text(json.dumps(stored))
    before = 'one\n<!-- table: memory -->\n| old |\n|---|\n\ntwo | three\n'
    after = performance_tables.filled(before, tmp_path)
    assert after.startswith(
        'one\n<!-- table: memory -->\n|  | anonymous memory, GiB |\n|---|---:|\n| `prepare` | 1.50 |\n'
    )
    assert after.endswith('| `export` | 0.25 |\n\ntwo | three\n') and 'old' not in after
    with pytest.raises(KeyError):
        performance_tables.filled('<!-- table: nothing -->\n', tmp_path)
