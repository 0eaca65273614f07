"""`wherever check`: whether translation invariance and locality are true of pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from wherever.cli.common import (
    Terminal,
    count_bands,
    count_missing,
    load_image,
    match_picture,
    note,
    parse_bands,
    plot_format,
    plural,
)
from wherever.cli.options import RESULT, Debug
from wherever.cli.progress import Steps
from wherever.files.images import Image, locate
from wherever.files.outputs import write_atomically

if TYPE_CHECKING:
    from wherever.check import Locality, Sharing, Stationarity

    Results = dict[str, Stationarity | Locality | Sharing | None]

_HOW = "What is checked"
_QUESTIONS = {
    "stationarity": "Do patches look the same wherever they are?",
    "locality": "How far must one look?",
    "sharing": "One kernel for all places?",
}


def check(
    images: Annotated[
        list[str],
        Argument(metavar="IMAGE", show_default=False, help="Pictures of one kind; sizes may differ, bands may not."),
    ],
    label: Annotated[
        str | None,
        Option(
            metavar="FOLDER_OR_CSV",
            rich_help_panel=_HOW,
            help='Classes to tell apart: the word "folder" for the name of the folder that each picture is in, or a '
            "CSV file with the columns image and label.",
            show_default="a pixel is predicted from its neighbours",
        ),
    ] = None,
    delta: Annotated[
        int,
        Option(metavar="N", min=1, rich_help_panel=_HOW, help="Reach of the kernels that are compared, in pixels."),
    ] = 2,
    grid: Annotated[
        int,
        Option(metavar="N", min=2, rich_help_panel=_HOW, help="Most positions that are compared, down and across."),
    ] = 8,
    most: Annotated[
        int,
        Option(metavar="N", min=1, rich_help_panel=_HOW, help="Of more pictures, look at N spread evenly over all."),
    ] = 1000,
    bands: Annotated[
        str | None,
        Option(
            metavar="LIST",
            rich_help_panel=_HOW,
            help="Use only these bands, counted from 1, for example 1-30,45.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[int, Option(metavar="N", min=0, rich_help_panel=_HOW, help="Seed of what is drawn at random.")] = 0,
    plot: Annotated[
        Path | None, Option(metavar="FILE.png", rich_help_panel=RESULT, help="Draw what was found.")
    ] = None,
    as_json: Annotated[
        bool,
        Option(
            "--json", metavar="", rich_help_panel=RESULT, help="Print the result as JSON on stdout instead of tables."
        ),
    ] = False,
    debug: Debug = False,
) -> int:
    """Check whether translation invariance and locality are true of pictures.

    [bold]wherever check cats/*.jpg dogs/*.jpg --label folder[/bold]

    tests whether statistics of patches depend on their position by more than chance; measures how correlation falls
    with distance, and how large a window is worth looking at; and compares, by cross-validation, one kernel for all
    places with one that knows its coordinates and with kernels of their own in each part of the picture.
    """
    from wherever.check.inputs import spread

    file_format = None if plot is None else plot_format(plot)
    chosen = parse_bands(bands)
    for source in images:
        locate(source)
    labels = None if label is None else _labels(label, images)
    taken = spread(len(images), most)
    sources = [images[int(i)] for i in taken]
    with Steps(len(sources) + len(_QUESTIONS), quiet=as_json) as steps:
        pictures = _read(sources, chosen, steps)
        target = None if labels is None else np.array([labels[int(i)] for i in taken])
        results = _checked(pictures, target, delta, grid, seed, steps)
    if plot is not None:
        from wherever.check.plots import draw

        drawn = io.BytesIO()
        draw(drawn, [result for result in results.values() if result is not None], file_format)
        write_atomically(plot, drawn.getvalue())
    if as_json:
        print(json.dumps(_report(images, sources, results), ensure_ascii=False, indent=1))
    else:
        _show(results)
    return 0


def _labels(given: str, images: Sequence[str]) -> list[str]:
    """Find the label of each picture: the name of its folder, or what a CSV file says."""
    if given == "folder":
        labels = [PurePath(source.replace("\\", "/")).parent.name for source in images]
        if "" in labels:
            labels = [name or Path(source).resolve().parent.name for source, name in zip(images, labels, strict=True)]
        if len(set(labels)) < 2:
            raise ValueError(
                f"--label folder: all pictures are in folders named {labels[0]}; there is nothing to tell apart"
            )
        return labels
    path = Path(given)
    if not path.is_file():
        raise ValueError(
            f'--label {given}: no such file; give a CSV file with columns image and label, or the word "folder"'
        )
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        names = {name.strip().lower(): name for name in reader.fieldnames or []}
        if not {"image", "label"} <= set(names):
            there = ", ".join(reader.fieldnames or []) or "nothing"
            raise ValueError(f"--label {given}: needs the columns image and label; it has {there}")
        rows = [(row[names["image"]] or "", row[names["label"]] or "") for row in reader]
    found: dict[str, str] = {}
    for name, text in rows:
        source = match_picture(name, images)
        if source is not None:
            found[source] = text.strip()
    without = [source for source in images if not found.get(source)]
    if without:
        raise ValueError(
            f"--label {given}: says nothing of {plural(len(without), 'picture')}, the first is {without[0]}"
        )
    return [found[source] for source in images]


def _read(sources: Sequence[str], bands: list[int] | None, steps: Steps) -> list[Image]:
    pictures: list[Image] = []
    for source in sources:
        steps.next(source)
        picture = load_image(source, bands, missing=True)
        holes = count_missing(picture)
        if holes:
            raise ValueError(
                f"{source}: {plural(holes, 'pixel')} with NaN or infinite values; fill them, or leave it out"
            )
        if pictures and count_bands(picture) != count_bands(pictures[0]):
            raise ValueError(
                f"{source}: has {plural(count_bands(picture), 'band')}, {sources[0]} has {count_bands(pictures[0])}; "
                "pictures to compare need equally many (--bands chooses)"
            )
        pictures.append(picture)
    return pictures


def _checked(pictures: Sequence[Image], target: Any, delta: int, grid: int, seed: int, steps: Steps) -> Results:
    """Do the three checks; None for what these pictures do not allow, with a remark."""
    from wherever.check import locality, sharing, stationarity

    results: Results = {}
    steps.next("stationarity", long=True)
    if len(pictures) < 2:
        note("one picture cannot tell a position from what happens to be there: stationarity needs several")
        results["stationarity"] = None
    else:
        results["stationarity"] = stationarity(pictures, grid=grid, seed=seed)
    steps.next("locality", long=True)
    results["locality"] = locality(pictures, seed=seed)
    steps.next("sharing", long=True)
    try:
        results["sharing"] = sharing(pictures, target, delta=delta, seed=seed)
    except ValueError as error:
        if not str(error).startswith("regions"):
            raise
        note(f"sharing is left out: {error}")
        results["sharing"] = None
    return results


def _report(images: Sequence[str], sources: Sequence[str], results: Results) -> dict[str, Any]:
    from wherever import __version__

    report: dict[str, Any] = {"wherever": __version__, "images": len(images), "looked_at": list(sources)}
    return report | {name: None if result is None else result.to_dict() for name, result in results.items()}


def _show(results: Results) -> None:
    console = Terminal()
    for name, result in results.items():
        if result is None:
            continue
        console.print(Text.assemble((_QUESTIONS[name], "bold"), (f"\n{result.title()}", "dim")))
        for header, rows in result.tables():
            table = Table(box=None, pad_edge=False, header_style="dim")
            for number, word in enumerate(header):
                table.add_column(word, justify="right" if number else "left")
            for row in rows:
                table.add_row(*(Text(cell) for cell in row), style="bold" if row[0].endswith("*") else "")
            console.print(table)
        console.print(Text(f"{result.sentence}\n", style="green"))
