"""Progress of long work on stderr: how far, how fast, how long to go."""

import sys
import time


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}h{minutes:02d}m' if hours else f'{minutes}m{seconds:02d}s' if minutes else f'{seconds}s'


class Progress:
    """Prints a line every few seconds and one at the end.

    Example:
      progress = Progress('encode', total=86_039, unit='documents')
      progress.add(8192)          # encode: 8192/86039 documents (10%), 120000/s, 1s to go
      progress.done()

    Args:
      label: what is being done.
      total: how many units there are in all; None where that is not known.
      unit: the plural of what is counted.
      start: units that an earlier process already did.
      every: seconds between two lines.
    """

    def __init__(self, label: str, *, total: int | None, unit: str, start: int = 0, every: float = 5.0):
        self._label, self._total, self._unit, self._every = label, total, unit, every
        self._start = self._count = self._printed = start
        self._begin = self._last = time.monotonic()

    def add(self, count: int, note: str = '') -> None:
        """Counts `count` more units as done; `note` is appended to a printed line."""
        self._count += count
        if time.monotonic() - self._last >= self._every:
            self._print(note)

    def done(self, note: str = '') -> None:
        """Prints the last line, if it is not printed already."""
        if self._printed < self._count or not self._count:
            self._print(note)

    def end(self) -> None:
        """As `done`, for work that is worth a line only where it is long: where there was one before."""
        if self._printed > self._start:
            self.done()

    def _print(self, note: str) -> None:
        self._last, self._printed = time.monotonic(), self._count
        elapsed = self._last - self._begin
        rate = (self._count - self._start) / elapsed if elapsed > 0 else 0.0
        if self._total is None:
            count, left = f'{self._count} {self._unit}', f'{_duration(elapsed)} so far'
        else:
            share = 100 * self._count // max(self._total, 1)
            count = f'{self._count}/{self._total} {self._unit} ({share}%)'
            done = self._count >= self._total or not rate
            rest = 0 if done else (self._total - self._count) / rate
            left = f'{_duration(elapsed)} in all' if done else f'{_duration(rest)} to go'
        line = f'{self._label}: {count}, {rate:.4g}/s, {left}'
        print(f'{line}; {note}' if note else line, file=sys.stderr, flush=True)
