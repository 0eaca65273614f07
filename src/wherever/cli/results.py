"""Finds of pictures as they are shown: files in a folder, JSON, and tables on the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from wherever.cli.common import Terminal, plural
from wherever.cli.large import overview, overview_step
from wherever.files.georeference import Georeference
from wherever.files.images import Image
from wherever.files.outputs import OutputFolder, to_csv_text
from wherever.files.pictures import heat_map_png, overlay_png, score_map_tif
from wherever.files.sources import Source

if TYPE_CHECKING:
    from wherever.find.detector import Detector
    from wherever.find.finds import Finds

_ROWS = 25


class ScoreFormat(StrEnum):
    """How score maps are written."""

    PNG = "png"
    TIF = "tif"
    NONE = "none"


def subfolders(images: Sequence[str]) -> dict[str, str]:
    """Name a folder for each picture if there are several: its name without suffix, numbered if that is taken."""
    if len(images) == 1:
        return {images[0]: ""}
    places: dict[str, str] = {}
    taken: set[str] = set()
    for source in images:
        if source in places:
            continue
        stem = PurePath(source.removeprefix("sample:")).stem if "#" not in source else PurePath(source).name
        name = base = re.sub(r"[^\w.#+-]+", "_", stem).strip(".") or "picture"
        number = 2
        while name.lower() in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name.lower())
        places[source] = f"{name}/"
    return places


def write(
    folder: OutputFolder,
    place: str,
    image: Image | Source,
    found: Finds,
    examples: npt.NDArray[np.float64] | None,
    heat: npt.NDArray[Any] | None,
    scores: ScoreFormat,
    *,
    georeference: Georeference | None = None,
    coco: bool = False,
) -> None:
    """Write what belongs to one picture; pictures of a large one are smaller than it."""
    folder.write(f"{place}finds.geojson", found.to_geojson(georeference=georeference))
    if coco:
        folder.write(f"{place}finds.coco.json", found.to_coco())
    boxes = found.boxes
    if isinstance(image, Source):
        step = overview_step(image)
        image = overview(image)
        boxes, examples = boxes / step, None if examples is None else examples / step
    folder.write(f"{place}overlay.png", overlay_png(image, boxes, found.scores, examples))
    if heat is not None and scores is ScoreFormat.TIF:
        folder.write(f"{place}scores.tif", score_map_tif(heat))
    elif heat is not None:
        folder.write(f"{place}scores.png", heat_map_png(image, heat))


def write_table(folder: OutputFolder, results: Sequence[tuple[Finds, float]]) -> None:
    """Write the finds of all pictures as one table."""
    tables = [
        to_csv_text(
            item.boxes,
            item.scores,
            scale=item.scale,
            angle=item.angle,
            image=item.image,
            label=item.label,
            header=number == 0,
        )
        for number, (item, _) in enumerate(results)
    ]
    folder.write("finds.csv", "".join(tables))


def results_as_json(results: Sequence[tuple[Finds, float]], threshold: float) -> dict[str, Any]:
    """Give the finds of all pictures in plain types."""
    from wherever import __version__

    pictures = []
    for found, anywhere in results:
        width, height = found.image_size or (None, None)
        items = [{**dict(zip(("x0", "y0", "x1", "y1"), find.box, strict=True)), **find._asdict()} for find in found]
        for item in items:
            item.pop("box")
        pictures.append(
            {
                "image": found.image,
                "width": width,
                "height": height,
                "label": found.label,
                "anywhere": anywhere,
                "calibrated": found.calibrated,
                "finds": items,
            }
        )
    return {"wherever": __version__, "threshold": threshold, "images": pictures}


def print_results(
    model: Detector, results: Sequence[tuple[Finds, float]], folder: OutputFolder | None, save: str | None
) -> None:
    """Print the finds of one picture, or a line for each of several, and what was written."""
    console = Terminal()
    if len(results) == 1:
        _print_finds(console, *results[0])
    else:
        _print_pictures(console, results)
    if folder is not None:
        inner = ", ".join(sorted(folder.names)) if len(results) == 1 else "finds.csv, and a folder for each picture"
        console.print(Text.assemble("Written: ", (f"{folder.path}/", "bold"), f" ({inner})"))
    if save is not None:
        console.print(Text.assemble("Saved: ", (save, "bold")))


def _print_finds(console: Terminal, found: Finds, anywhere: float) -> None:
    turned = bool(np.any(found.angle))
    title = Text.assemble((str(found.image), "bold"), f": {plural(len(found), 'find')}")
    if not len(found):
        console.print(title)
    else:
        columns = ["", "probability" if found.calibrated else "score", "", "box X,Y,W,H", "size"]
        table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="", header_style="dim")
        for name in columns + ["turned"] * turned:
            table.add_column(name, justify="left" if name in ("", "box X,Y,W,H") else "right", no_wrap=True)
        for number, item in enumerate(found[:_ROWS], start=1):
            x0, y0, x1, y1 = item.box
            box = f"{round(x0)},{round(y0)},{max(1, round(x1 - x0))},{max(1, round(y1 - y0))}"
            row: list[str | Text] = [
                str(number),
                f"{item.score:.3f}",
                _bar(console, item.score),
                box,
                f"{item.scale:.2f}",
            ]
            table.add_row(*row, *[f"{item.angle:.0f}°"][: int(turned)])
        console.print(table)
        if len(found) > _ROWS:
            console.print(f"... and {len(found) - _ROWS} more", style="dim")
    if found.calibrated:
        console.print(f"Probability that there is one anywhere: {anywhere:.3f}")
    else:
        console.print(f"Score that there is one anywhere: {anywhere:.3f}")
        console.print(
            "Scores rank finds; they are calibrated as probabilities if more is marked (--complete).", style="dim"
        )


def _print_pictures(console: Terminal, results: Sequence[tuple[Finds, float]]) -> None:
    total = sum(len(found) for found, _ in results)
    names = [str(found.image) for found, _ in results]
    folders = {os.path.dirname(name) for name in names}
    folder = folders.pop() if len(folders) == 1 else ""
    title = Text(f"{plural(total, 'find')} in {plural(len(results), 'picture')}{' of ' * bool(folder)}{folder}")
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="", header_style="dim")
    for name in ("picture", "finds", "best", "", "box of the best", "anywhere"):
        table.add_column(
            name, justify="right" if name in ("finds", "best", "anywhere") else "left", no_wrap=name != "picture"
        )
    for found, anywhere in results:
        picture = Text(str(found.image).removeprefix(folder).lstrip("/"), overflow="fold")
        if not len(found):
            table.add_row(picture, "0", "", "", "", f"{anywhere:.3f}")
            continue
        x0, y0, x1, y1 = found[0].box
        box = f"{round(x0)},{round(y0)},{round(x1 - x0)},{round(y1 - y0)}"
        score = found[0].score
        table.add_row(picture, str(len(found)), f"{score:.3f}", _bar(console, score), box, f"{anywhere:.3f}")
    console.print(table)


def _bar(console: Terminal, score: float, width: int = 10) -> Text:
    """Draw a score between 0 and 1 as a bar, of eighths of characters where the terminal can write them."""
    eighths = round(min(max(score, 0.0), 1.0) * width * 8)
    if not console.encoding.startswith("utf"):
        return Text("#" * round(eighths / 8))
    return Text("█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else ""), style="yellow")
