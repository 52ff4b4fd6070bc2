"""The one exception of the command-line tool."""


class InputError(ValueError):
    """The user's input is wrong: the message says what was passed, what was expected and the fix.

    The command-line tool prints it as one sentence and ends with exit code 2; in Python it is an
    ordinary `ValueError`.
    """
