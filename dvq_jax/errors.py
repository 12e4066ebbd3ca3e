"""The one exception that a command turns into a sentence and exit code 2."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one sentence that names the file or flag, the value found, and the remedy.
    """
