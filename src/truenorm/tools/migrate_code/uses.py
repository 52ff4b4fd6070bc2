"""What comes of a file: its new source, and the uses that are left to the user."""

import dataclasses


@dataclasses.dataclass(frozen=True, order=True)
class Use:
    """A use that stays: its line, what is used, what to do about it, and the cell in a notebook."""

    line: int
    name: str
    advice: str
    cell: int | None = None

    def __str__(self) -> str:
        cell = "" if self.cell is None else f"cell {self.cell}:"
        return f"{cell}{self.line}: {self.name}: {self.advice}"


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A rewritten file, in its own encoding, the uses that are left, and notes on what changed."""

    source: bytes
    uses: list[Use]
    notes: tuple[Use, ...] = ()
