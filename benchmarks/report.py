"""What is shown: a line a case as it is measured, a table of families beside their targets, Markdown, and a plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cases import TARGETS
from measuring import Row

HEADER = ["case", "algorithm", "ours, ms", "best peer, ms", "which", "ratio"]


def line(row: Row) -> list[str]:
    """A case as a row of a table."""
    times = [f"{row.ours * 1e3:.3g}", f"{row.times[row.peer] * 1e3:.3g}"]
    return [row.case.name, row.algorithm, *times, row.peer, f"{row.ratio:.2f}"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


@dataclass(frozen=True)
class Family:
    """The cases of a family, or of a part of one, beside what they are to reach."""

    name: str
    rows: tuple[Row, ...]
    mean_target: float
    lowest_target: float

    @property
    def mean(self) -> float:
        """The geometric mean of the ratios."""
        return statistics.geometric_mean(row.ratio for row in self.rows)

    @property
    def lowest(self) -> Row:
        """The case that is nearest to its peer, or furthest behind it."""
        return min(self.rows, key=lambda row: row.ratio)

    def cells(self) -> list[str]:
        """A row of the table of families."""
        lowest = self.lowest
        reached = self.mean >= self.mean_target and lowest.ratio >= self.lowest_target
        behind = sum(row.ratio < 1 for row in self.rows)
        numbers = [f"{self.mean:.2f}", f"{self.mean_target:g}", f"{lowest.ratio:.2f}", f"{self.lowest_target:g}"]
        return [self.name, str(len(self.rows)), *numbers, lowest.case.name, str(behind), "yes" if reached else "no"]


FAMILY_HEADER = ["family", "cases", "mean", "target", "lowest", "target", "which is lowest", "behind a peer", "reached"]


def families(rows: Sequence[Row], *, parts: bool = False) -> list[Family]:
    """The families that were measured, in the order of the targets; with ``parts`` each followed by its kinds."""
    found = []
    for name, targets in TARGETS.items():
        members = tuple(row for row in rows if row.case.family == name)
        if not members:
            continue
        found.append(Family(name, members, *targets))
        kinds = list(dict.fromkeys(row.case.part for row in members))
        if parts and len(kinds) > 1:
            each = (tuple(row for row in members if row.case.part == kind) for kind in kinds)
            found += [Family(f"- {kind}", some, *targets) for kind, some in zip(kinds, each, strict=True)]
    return found


def machine() -> str:
    """The processor and the system."""
    name = platform.processor() or platform.machine()
    try:
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if text.startswith("model name"):
                name = text.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} processors, {platform.system()}, Python {platform.python_version()}"


def left_out(rows: Sequence[Row]) -> list[str]:
    """Peers that were not timed, in words: each with the cases that it was left out of."""
    why: dict[str, list[str]] = {}
    for row in rows:
        for name, reason in row.left_out.items():
            if not reason.startswith("would take"):
                why.setdefault(f"{name} {reason}", []).append(row.case.name)
            else:
                why.setdefault(f"{name} was left out where one call takes many seconds", []).append(row.case.name)
    return [f"{reason}: {', '.join(dict.fromkeys(names))}." for reason, names in why.items()]


def document(rows: Sequence[Row], introduction: Sequence[str]) -> str:
    """The whole report in Markdown."""
    parts = [*introduction, "", markdown(FAMILY_HEADER, [family.cells() for family in families(rows, parts=True)])]
    for family in families(rows):
        parts += [f"### {family.name}", "", markdown(HEADER, [line(row) for row in family.rows])]
    return "\n".join([*parts, *left_out(rows)]) + "\n"


def plot(rows: Sequence[Row], path: Path, caption: str) -> None:
    """A strip of ratios for each family: every case a dot, the geometric mean a bar, its target a tick."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = families(rows)
    ours, behind, quiet = "#1b6ca8", "#c8553d", "#8a8a8a"
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.42 * len(groups)), layout="constrained")
    for place, family in enumerate(groups):
        ratios = sorted(row.ratio for row in family.rows)
        # Dots that would cover each other are spread: every third a little above, every third a little below.
        offsets = [place + 0.16 * ((i % 3) - 1) * (len(ratios) > 4) for i in range(len(ratios))]
        colours = [ours if ratio >= 1 else behind for ratio in ratios]
        axes.plot(
            [1, family.mean], [place, place], color=ours if family.mean >= 1 else behind, lw=9, alpha=0.22, zorder=1
        )
        axes.scatter(ratios, offsets, s=18, c=colours, alpha=0.75, linewidths=0, zorder=3)
        axes.plot([family.mean_target] * 2, [place - 0.33, place + 0.33], color="black", lw=1.3, zorder=2)
        axes.annotate(f"{family.mean:.2f}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.axvline(1, color=quiet, lw=1, zorder=0)
    axes.set_xscale("log", base=2)
    ratios = [row.ratio for row in rows] + [1.0]
    low, high = min(*ratios, 0.5), max(*ratios, 4.0)
    axes.set_xlim(low / 1.15, high * 1.15)
    ticks = [t for t in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64, 128) if low / 1.15 <= t <= high * 1.15]
    axes.set_xticks(ticks, [f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(groups)), [f"{family.name} ({len(family.rows)})" for family in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times as fast as the best peer\n(a dot: one case; bar and number: geometric mean; tick: target)")
    axes.set_title(caption, loc="left", fontsize=10, wrap=True)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
