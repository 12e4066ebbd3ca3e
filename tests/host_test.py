import threading

import pytest

from dvq_jax import host


@pytest.mark.parametrize(
    ('flags', 'expected'), [('fpu amx_bf16 amx_tile', True), ('fpu avx512_bf16', False), (None, False)]
)
def test_matrix_units_are_those_that_the_processor_lists(flags, expected, tmp_path, monkeypatch):
    if flags:
        (tmp_path / 'cpuinfo').write_text(f'processor\t: 0\nflags\t\t: {flags}\n', encoding='utf-8')
    monkeypatch.setattr(host, '_CPUINFO', tmp_path / 'cpuinfo')
    assert host.has_matrix_units.__wrapped__() == expected


@pytest.mark.parametrize('spare', [0, 1])
def test_a_thread_for_each_core_and_for_what_is_to_spare(spare):
    together = threading.Barrier(host.cores() + spare)

    def wait_for_all(number):
        together.wait(timeout=60)
        return number

    numbers = range(3 * together.parties)
    assert list(host.on_threads(wait_for_all, numbers, spare=spare)) == list(numbers)
