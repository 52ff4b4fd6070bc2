"""The one exception of the command-line tool, and how a message shows a value."""

import reprlib
from typing import Any


class InputError(ValueError):
    """The user's input is wrong: the message says what was passed, what was expected and the fix.

    The command-line tool prints it as one sentence and ends with exit code 2; in Python it is an
    ordinary `ValueError`.
    """


def summary(error: BaseException) -> str:
    """An exception as part of a sentence: its type, and the beginning of its text on one line."""
    text = " ".join(str(error)[:2000].split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:297]}...'}"


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = 12
_SHORT.maxstring = _SHORT.maxother = 120


def brief(value: Any) -> str:
    """The value as a message shows it: its repr, cut where it is long, whatever it is."""
    try:
        return _SHORT.repr(value)
    except Exception:  # a repr of somebody else's, or an integer that Python does not print
        return f"a {type(value).__name__} that cannot be shown"
