"""What every matplotlib figure of the package shares."""

import importlib.util

from truenorm.core.errors import InputError

# Okabe and Ito's colours, told apart with every kind of colour vision; markers for grey print.
COLOURS = ("#4d4d4d", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d1f")
MARKERS = "os^DvPX*"


def need_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "drawing needs matplotlib, which is not installed; "
            "install it with: pip install matplotlib"
        )
