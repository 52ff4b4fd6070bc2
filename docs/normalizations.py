"""The table of docs/normalizations.md, from the rows of `truenorm.core.kinds`.

python docs/normalizations.py     prints it
"""

from truenorm.core.kinds import KINDS


def table() -> str:
    """A row for each normalization, as Markdown."""
    lines = [
        "| name | Keras | PyTorch | flax | shares statistics | statistic | learned "
        "| epsilon: Keras, PyTorch, flax | paper |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS.values():
        torch = kind.torch or "–"
        epsilons = [kind.epsilon.get(front, "–") for front in ("keras", "torch", "flax")]
        shown = ["the dtype's" if one is None else str(one) for one in epsilons]
        cells = [
            f"`{kind.name}`", f"`{kind.keras}`", f"`{torch.replace('2d', '1d/2d/3d')}`",
            f"`{kind.flax}`" if kind.flax else "–", kind.sentence.rstrip("."),
            "mean and variance" if kind.centered else "root mean square",
            ", ".join(kind.learned), ", ".join(shown), kind.paper,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
