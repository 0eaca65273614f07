"""Tables, shares and p-values as the checks write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

Cells: TypeAlias = tuple[tuple[str, ...], list[list[str]]]


class Result(Protocol):
    """What has a title, tables of text, and a sentence."""

    @property
    def sentence(self) -> str:
        """What the numbers say, in words."""

    def title(self) -> str:
        """Give one line that says what was looked at."""

    def tables(self) -> list[Cells]:
        """Give tables as text: a header and rows each."""


def printed(result: Result) -> str:
    """Write a result in plain text."""
    return "\n\n".join([result.title(), *(lines(header, rows) for header, rows in result.tables()), result.sentence])


def percent(share: float) -> str:
    """Write a share in percent, with as many digits as say something: 0.003 %, 0.42 %, 93.1 %, 99.98 %."""
    value = 100 * share
    if 99.95 <= value < 100:
        return "> 99.999 %" if value >= 99.9995 else f"{value:.3f} %" if value >= 99.995 else f"{value:.2f} %"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.0e} %".replace("e-0", "e-")
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 1 else 2 if abs(value) >= 0.1 else 3
    return f"{value:.{digits}f} %"


def chance(p: float) -> str:
    """Write a p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def listed(words: Iterable[str]) -> str:
    """Join words: a; a and b; a, b and c."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def lines(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Write a table in plain text: a header, a rule, and rows; numbers to the right, `left` columns to the left."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
