"""What a comparison is asked to do: read from text or Python values, checked, fixed.

Nothing here trains or imports a framework. What depends on the images' size is checked by
`models.check`, what depends on the data by `data.load`.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from truenorm.core.errors import InputError
from truenorm.core.kinds import KINDS

MODELS = ("tutorial", "rnn")
# The axis of the channels in each model, and the groups, where the user gives none.
AXIS = {"tutorial": 3, "rnn": -1}
GROUPS = {"tutorial": 5, "rnn": 8}


def options_of(name: str) -> tuple[str, ...]:
    """The options of an entry: arguments of the kind's layer."""
    if name == "none":
        return ()
    kind = KINDS[name]
    options = ["groups"] if kind.groups else []
    options += ["axis", *(["momentum"] if name == "batch" else []), "epsilon"]
    if kind.optional:
        switches = {"beta": "center", "gamma": "scale"}
        options += [switches[one] for one in ("beta", "gamma") if one in kind.learned]
    options += [f"{one}_initializer" for one in ("beta", "gamma") if one in kind.learned]
    return tuple(options)


def known_norms() -> list[str]:
    """The names of entries: "none", and the kinds."""
    return ["none", *KINDS]


def _fitting(name: str, model: str) -> dict[str, Any]:
    """The options that fit this model."""
    if name == "none":
        return {}
    kind, axis = KINDS[name], AXIS[model]
    groups = {"groups": GROUPS[model]} if kind.groups else {}
    # An axis that is the layer's own default stays out of the entry.
    return groups | ({} if kind.axis is None or axis == kind.axis else {"axis": axis})


# The defaults of both the function and the command.
DEFAULTS: dict[str, Any] = {
    "norms": "none,batch,layer,instance,group",
    "model": "tutorial",
    "data": "digits",
    "train_size": None,
    "train_on": "train",
    "batch_sizes": "2,8,32",
    "epochs": 10,
    "seeds": 5,
}
LARGEST_SEED = 2**31 - 1  # what every backend's random generator takes


@dataclasses.dataclass(frozen=True)
class Norm:
    """One normalization of a comparison.

    Attributes:
        name: none, or a kind's.
        chosen: the options the user gave.
        options: those and the model's, the arguments of the layer.
    """

    name: str
    chosen: dict[str, Any] = dataclasses.field(hash=False)
    options: dict[str, Any] = dataclasses.field(hash=False)

    @property
    def label(self) -> str:
        """The entry as it is written on the command line, such as "group:groups=2"."""
        return ":".join([self.name, *(f"{k}={_text(v)}" for k, v in self.chosen.items())])


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a comparison's numbers, but for the data and the versions."""

    data: str
    model: str
    norms: tuple[Norm, ...]
    batch_sizes: tuple[int, ...]
    epochs: int
    seeds: tuple[int, ...]
    train_size: int | None
    train_on: str

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values; each normalization with all its options."""
        fields = dataclasses.asdict(self)
        fields["norms"] = {norm.label: norm.options for norm in self.norms}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def read(
    *,
    data: object,
    model: str,
    norms: str | Iterable[str],
    batch_sizes: str | int | Iterable[int],
    epochs: str | int,
    seeds: str | int | Iterable[int],
    train_size: str | int | None,
    train_on: str,
) -> Settings:
    """Check what the user asked for, given as text or as Python values.

    Raises:
        InputError: a value that cannot be; the message says what is expected.
    """
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}{nearest(str(model), MODELS)}")
    if train_on not in ("train", "test"):
        raise InputError(f"train_on={train_on!r} is unknown; expected 'train' or 'test'.")
    return Settings(
        data=str(data),
        model=model,
        norms=read_norms(norms, model),
        batch_sizes=_integers("batch_sizes", batch_sizes, at_least=1),
        epochs=_integer("epochs", epochs, at_least=1),
        seeds=_seeds(seeds),
        train_size=None if train_size is None else _integer("train_size", train_size, at_least=1),
        train_on=train_on,
    )


def read_norms(norms: str | Iterable[str], model: str) -> tuple[Norm, ...]:
    """Read "none,group:groups=5" or a list of such entries, with the options that fit the model."""
    entries = norms.split(",") if isinstance(norms, str) else list(norms)
    if not entries:
        raise InputError("norms is empty; name at least one, such as none,batch,group.")
    read = tuple(_read_norm(str(entry).strip(), model) for entry in entries)
    for position, norm in enumerate(read):
        for other in read[:position]:
            if (norm.name, norm.options) == (other.name, other.options):
                raise InputError(
                    f"the normalizations {other.label!r} and {norm.label!r} are the same one "
                    f"({_spelled(norm.options)}); name it once, or give them different options."
                )
    return read


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown word: the nearest known one, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(word.lower(), known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}? Expected " if near else "; expected "
    return f"{hint}one of {', '.join(known)}."


def _read_norm(entry: str, model: str) -> Norm:
    name, *pairs = entry.split(":")
    if name not in known_norms():
        raise InputError(f"unknown normalization {name!r}{nearest(name, known_norms())}")
    known = options_of(name)
    chosen: dict[str, Any] = {}
    for pair in pairs:
        option, equals, text = pair.partition("=")
        if option not in known:
            if not known:
                raise InputError(f"{entry!r}: {name!r} takes no options, got {pair!r}.")
            raise InputError(f"{entry!r}: {name!r} has no option {option!r}"
                             f"{nearest(option, known)}")  # fmt: skip
        if not equals:
            raise InputError(f"{entry!r}: the option {option!r} has no value; write {option}=...")
        if option in chosen:
            raise InputError(f"{entry!r}: the option {option!r} is given twice.")
        expected, parse = PARSERS[option]
        try:
            chosen[option] = parse(text)
        except ValueError:
            raise InputError(f"{entry!r}: {option}={text} must be {expected}.") from None
    chosen = {option: chosen[option] for option in known if option in chosen}
    return Norm(name, chosen, {**_fitting(name, model), **chosen})


def _axis(text: str) -> int | list[int]:
    axes = [int(part) for part in text.split("+")]
    return axes if len(axes) > 1 else axes[0]


def _groups(text: str) -> int:
    groups = int(text)
    if groups < 1 and groups != -1:
        raise ValueError
    return groups


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _initializer(text: str) -> str:
    if text not in INITIALIZERS:
        raise ValueError
    return text


INITIALIZERS = ("zeros", "ones", "random_uniform", "random_normal", "truncated_normal")
_one_of = f"one of {', '.join(INITIALIZERS)}"
PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "axis": ("an integer such as 3, or integers joined by + such as 1+2+3", _axis),
    "groups": ("a positive integer, or -1 for one group per channel", _groups),
    "momentum": ("a number from 0 to 1", _fraction),
    "epsilon": ("a positive number", _positive),
    "center": ("true or false", _boolean),
    "scale": ("true or false", _boolean),
    "beta_initializer": (_one_of, _initializer),
    "gamma_initializer": (_one_of, _initializer),
}


def _integer(name: str, value: object, at_least: int, at_most: int | None = None) -> int:
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    try:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        number = int(value)  # type: ignore[call-overload]  # what cannot be read raises
    except (TypeError, ValueError):
        raise InputError(f"{name}={value!r} must be an integer {bounds}.") from None
    if number < at_least or (at_most is not None and number > at_most):
        raise InputError(f"{name}={number} must be an integer {bounds}.")
    return int(number)


def _integers(
    name: str, value: str | int | Iterable[int], at_least: int, at_most: int | None = None
) -> tuple[int, ...]:
    parts: Iterable[object]
    if isinstance(value, str):
        # A trailing comma makes a list of one: "7," is the seed 7.
        parts = value.removesuffix(",").split(",")
    elif isinstance(value, Iterable):
        parts = value
    else:
        parts = [value]
    numbers = tuple(_integer(name, part, at_least, at_most) for part in parts)
    if not numbers:
        raise InputError(f"{name} is empty; give at least one.")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{name}={','.join(map(str, numbers))} names a value twice.")
    return numbers


def _seeds(value: str | int | Iterable[int]) -> tuple[int, ...]:
    """A number is how many seeds, from 0 on; a list is the seeds themselves."""
    if isinstance(value, int) or (isinstance(value, str) and "," not in value):
        return tuple(range(_integer("seeds", value, 1, 1000)))
    return _integers("seeds", value, 0, LARGEST_SEED)


def _text(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spelled(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={_text(v)}" for k, v in options.items()) or "no options"
