"""The commands: `python -m dvq_jax.cli.NAME`. Each is a short main; the work is in the libraries."""

import json
import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from dvq_jax.errors import InputError


def _fail(error: Exception, about: str = '') -> None:
    # ml_collections wraps a KeyError, whose own text is the repr of what it has to say.
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    print(f'error: {about}{" ".join(message.split())}', file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    for path in (word.removeprefix('--config=') for word in argv if word.startswith('--config=')):
        if not os.path.isfile(path.partition(':')[0]):  # what follows a colon goes to the config
            _fail(InputError(f'--config={path}: no such file; configs/default.py is one, of this folder.'))
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, ImportError) as error:
        _fail(error)
    # A config flag is read while flags are parsed, and says by these what is wrong with a field or a value.
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(error, 'a --config flag is wrong: ')
    if len(rest) > 1:
        _fail(InputError(f'unexpected argument {rest[1]!r}; flags are written --name=value.'))
    return rest


def run(main: Callable[[], dict | None]) -> None:
    """Runs a command: its result goes to stdout as one JSON line, bad input to stderr with exit code 2.

    Args:
      main: the command; takes nothing (flags are parsed), returns what to print, or None if it has.
    """

    def guarded(_argv: list[str]) -> None:
        # Orbax narrates every file that it touches; progress is ours to print.
        logging.set_verbosity(logging.ERROR)
        try:
            result = main()
        except InputError as error:
            _fail(error)
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            sys.exit(130)
        if result is not None:
            print(json.dumps(result), flush=True)

    app.run(guarded, flags_parser=_parse)
