"""The commands: `python -m dvq_jax.cli.NAME`. Each is a short main; the work is in the libraries."""

import json
import sys
from collections.abc import Callable

from absl import app, logging

from dvq_jax.errors import InputError


def run(main: Callable[[], dict | None]) -> None:
    """Runs a command: its result goes to stdout as one JSON line, bad input to stderr with exit code 2.

    Args:
      main: the command; takes nothing (flags are parsed), returns what to print, or None if it has.
    """

    def guarded(argv: list[str]) -> None:
        # Orbax narrates every file that it touches; progress is ours to print.
        logging.set_verbosity(logging.ERROR)
        try:
            if len(argv) > 1:
                raise InputError(f'unexpected argument {argv[1]!r}; flags are written --name=value.')
            result = main()
        except InputError as error:
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)
        if result is not None:
            print(json.dumps(result), flush=True)

    app.run(guarded)
