"""`wherever train`: a detector with a network, from pictures in which everything is marked, within a budget of time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from typer import Argument, Option

from wherever.cli.common import (
    Marked,
    Terminal,
    as_list,
    by_picture,
    choose_label,
    find_picture,
    match_picture,
    note,
    parse_bands,
    parse_scales,
    plural,
)
from wherever.cli.examples import saved_to
from wherever.cli.examples import train as fit
from wherever.cli.large import expand
from wherever.cli.options import RESULT, SEARCH, Bands, Debug
from wherever.files.boxes import read_boxes
from wherever.files.images import locate

if TYPE_CHECKING:
    from wherever.find.learning import Round

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_HOW = "How to learn"


class Kind(StrEnum):
    """Kinds of detectors."""

    AUTO = "auto"
    LEARNED = "learned"
    HEAD = "head"
    CLOSED = "closed"


def train(
    images: Annotated[
        list[str] | None,
        Argument(
            metavar="IMAGE",
            show_default=False,
            help="Pictures to learn from, folders and patterns of them; those that the truth does not name hold "
            "nothing. Without any: all that the truth names.",
        ),
    ] = None,
    truth: Annotated[
        str,
        Option(
            metavar="FILE_OR_FOLDER",
            show_default=False,
            help="The boxes of everything in the pictures: CSV with a column image, COCO JSON, GeoJSON, Pascal VOC XML "
            "or a folder of it. Boxes marked difficult, iscrowd or ignore are not looked at.",
        ),
    ] = "",
    save: Annotated[
        str,
        Option(
            metavar="FILE",
            rich_help_panel=RESULT,
            help="Where to save the detector, for wherever find --detector FILE.",
            show_default=False,
        ),
    ] = "",
    label: Annotated[
        str | None, Option(metavar="NAME", help="Which kind of thing of the truth, if there are several.")
    ] = None,
    negative: Annotated[
        str | None,
        Option("--not", metavar="FILE", help="Boxes of what looks similar and is not meant, in a file like the truth."),
    ] = None,
    ignore: Annotated[
        str | None,
        Option(metavar="FILE", help="Boxes of regions to be left alone, in a file like the truth."),
    ] = None,
    incomplete: Annotated[
        bool,
        Option(
            "--incomplete",
            metavar="",
            help="Not everything is marked: what is not marked is no background to learn from in particular.",
        ),
    ] = False,
    budget: Annotated[
        str, Option(metavar="TIME", rich_help_panel=_HOW, help="How long to train, for example 90s or 2min.")
    ] = "2min",
    kind: Annotated[
        Kind,
        Option(
            rich_help_panel=_HOW,
            help="closed: the closed form; head: a small network added to it; learned: a network on the pictures; "
            "auto: the one that finds best in pictures held out.",
        ),
    ] = Kind.AUTO,
    resume: Annotated[
        bool,
        Option("--resume", metavar="", rich_help_panel=_HOW, help="Train the network in the file --save further."),
    ] = False,
    upright: Annotated[
        bool,
        Option(
            "--upright", metavar="", rich_help_panel=SEARCH, help="Things are never turned or mirrored, as letters."
        ),
    ] = False,
    scales: Annotated[
        str | None,
        Option(
            metavar="MIN:MAX",
            rich_help_panel=SEARCH,
            help="Sizes to look for, relative to the mean of the boxes, for example 0.5:2.",
            show_default="learnt from the boxes",
        ),
    ] = None,
    bands: Bands = None,
    seed: Annotated[int, Option(metavar="N", rich_help_panel=_HOW, help="Of all that is drawn at random.")] = 0,
    debug: Debug = False,
) -> int:
    """Train a detector on pictures in which everything is marked, and save it.

    [bold]wherever train --truth annotations/ --label WBC --budget 1min --save white.detector[/bold]

    learns white cells for a minute; [bold]wherever find *.jpg --detector white.detector[/bold] finds them. Ctrl-C ends
    the training, and what is best so far is saved; --resume goes on from there. Networks need PyTorch.
    """
    from wherever.find.detector import Detector
    from wherever.find.network import needs_torch

    if not truth:
        raise ValueError("--truth is missing: name a file or folder with the boxes of everything in the pictures")
    if not save:
        raise ValueError("--save is missing: name the file that the detector is saved to, for example thing.detector")
    seconds, chosen, span = parse_time(budget), parse_bands(bands), parse_scales(scales)
    if kind is not Kind.CLOSED:
        needs_torch()
    marked = gather(truth, label, negative, ignore, expand(as_list(images)))
    if resume:
        if kind is not Kind.AUTO or span or upright:
            raise ValueError("--resume: the detector in --save knows its kind, scales and directions; leave them out")
        model = Detector.load(save).set_params(budget=seconds)
    else:
        model = Detector(kind=kind.value, budget=seconds, random_state=seed, upright=upright)
    with saved_to(save) as saved, Display(seconds) as display:
        model = fit(
            marked, chosen, span, None, not incomplete, model=model, resume=resume, progress=display, label=label
        )
        assert saved is not None
        model.save(saved)
    _print(model, display.last, save, marked)
    return 0


def parse_time(text: str) -> float:
    """Turn "2min" or "90s" into seconds."""
    match = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", text.strip().lower())
    try:
        seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else math.nan
    except (ValueError, KeyError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"--budget {text}: write a time, for example 90s, 2min or 1h")
    return seconds


def gather(
    truth: str, label: str | None, negative: str | None, ignore: str | None, images: Sequence[str]
) -> list[Marked]:
    """Read what is marked, sorted by picture."""
    pictures = by_picture(truth, choose_label(truth, read_boxes(truth, allow_empty=True), label), images)
    for path, which in ((negative, "negatives"), (ignore, "ignored")):
        for item in read_boxes(path) if path else []:
            sources = list(pictures)
            if item.image is None:
                if len(sources) != 1:
                    raise ValueError(f"{path}: does not say on which picture each box is; add a column image")
                source: str | None = sources[0]
            else:
                source = match_picture(item.image, sources)
                if source is None and not images:
                    source = find_picture(item.image, [], Path(str(path)))
            if source is not None:
                getattr(pictures.setdefault(source, Marked(source)), which).append(item.box)
    for source in pictures:
        locate(source)
    return list(pictures.values())


class Display:
    """How training goes, on a line of stderr, where that is a terminal."""

    def __init__(self, budget: float) -> None:
        console = Console(stderr=True)
        self.last: Round | None = None
        self._stack = ExitStack()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, words="")

    def __enter__(self) -> Display:
        self._stack.enter_context(self._bar)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def __call__(self, round_: Round) -> None:
        """Show a round of the training."""
        self.last = round_
        words = [f"loss {round_.loss:.3f}", f"{plural(round_.mined, 'find')} mined"]
        if not math.isnan(round_.average_precision):
            words.insert(1, f"held-out AP {round_.average_precision:.2f}")
        if round_.members > 1:
            words.insert(0, f"network {round_.member} of {round_.members}")
        self._bar.update(self._task, completed=round_.done, words=", ".join(words))


def _print(model: Any, last: Round | None, save: str, marked: Sequence[Marked]) -> None:
    if model.interrupted_:
        note("interrupted; the best so far is saved, and --resume goes on from there")
    console = Terminal()
    count = sum(len(item.boxes) for item in marked)
    kinds = {"closed": "the closed form", "head": "the closed form and a network", "learned": "a network"}
    console.print(f"Learnt from {plural(count, 'example')} in {plural(len(marked), 'picture')}: {kinds[model.kind_]}")
    if last is not None:
        console.print(f"Loss {last.loss:.3f}; background mined: {last.mined:,}", style="dim")
    console.print(Text.assemble("Saved: ", (save, "bold")))
