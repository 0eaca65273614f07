"""What was done to a model, layer by layer, to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """What runs one layer, and what it gained; times in seconds, nan where nothing was measured."""

    name: str
    what: str
    runs: str
    ours: float = math.nan
    theirs: float = math.nan


@dataclass(frozen=True)
class Report:
    """What was done to a model, layer by layer; print it."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        wide = max([len(row.name) for row in self.rows] + [5])
        what = max([len(row.what) for row in self.rows] + [4])
        lines = [f"{'layer':<{wide}}  {'what':<{what}}  {'runs on':<18} {'ours':>9} {'PyTorch':>9}"]
        for row in self.rows:
            times = "".join(f" {t * 1e3:6.3g} ms" if t == t else " " * 10 for t in (row.ours, row.theirs))
            lines.append(f"{row.name:<{wide}}  {row.what:<{what}}  {row.runs:<18}{times}".rstrip())
        return "\n".join([*lines, *self.notes])
