"""`wherever find`: mark a few examples, get every other place where the thing occurs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from wherever.cli.common import (
    NOTHING_FOUND,
    Marked,
    Terminal,
    as_list,
    count_bands,
    marked_from_file,
    match_picture,
    parse_bands,
    parse_box,
    parse_scales,
    plural,
)
from wherever.cli.large import around_examples, expand, overview, read, standing_for
from wherever.cli.progress import Steps
from wherever.files.georeference import Georeference
from wherever.files.images import Image, locate
from wherever.files.outputs import OutputFolder, replacing, to_csv_text
from wherever.files.pictures import heat_map_png, overlay_png, score_map_tif
from wherever.files.sources import Source
from wherever.files.windows import windowed
from wherever.tiles.grid import as_bytes

if TYPE_CHECKING:
    from wherever.find.detector import Detector
    from wherever.find.finds import Finds

_ROWS = 25


class ScoreFormat(StrEnum):
    """How score maps are written."""

    PNG = "png"
    TIF = "tif"
    NONE = "none"


_MARK, _SEARCH, _RESULT = "What to find", "Where and how to look", "Results"


def find(
    images: Annotated[
        list[str],
        Argument(
            metavar="IMAGE",
            show_default=False,
            help="Pictures to search, of any size: PNG, JPEG, BMP, GIF, WebP, TIFF with any number of bands, ENVI, "
            "Zarr, .npy; folders and patterns of them; FILE#2 is the second page of a file; sample:NAME a picture to "
            "try (wherever samples).",
        ),
    ],
    example: Annotated[
        list[str] | None,
        Option(
            metavar="X,Y,W,H",
            rich_help_panel=_MARK,
            help="One example: left and top edge, width and height in pixels, on the first IMAGE (or on --in). "
            "Repeatable.",
        ),
    ] = None,
    examples: Annotated[
        str | None,
        Option(
            metavar="FILE",
            rich_help_panel=_MARK,
            help="Examples from a file: CSV (x,y,w,h or x0,y0,x1,y1 or xmin,ymin,xmax,ymax; optionally image, label), "
            "JSON, COCO, GeoJSON, Pascal VOC XML or a folder of it.",
        ),
    ] = None,
    inside: Annotated[
        list[str] | None,
        Option(
            "--in",
            metavar="PICTURE",
            rich_help_panel=_MARK,
            help="The picture that the examples are on, if it is not the first IMAGE; it is searched only if it is "
            "also an IMAGE. Repeatable, for files that name several pictures.",
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        Option(
            "--not",
            metavar="X,Y,W,H",
            rich_help_panel=_MARK,
            help="Not this: a box, on the picture of the examples, that looks similar and is not meant. Repeatable.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        Option(metavar="NAME", rich_help_panel=_MARK, help="Which kind of thing in the --examples file; or its name."),
    ] = None,
    complete: Annotated[
        bool,
        Option(
            "--complete",
            metavar="",
            rich_help_panel=_MARK,
            help="Every occurrence in the pictures of the examples is marked: what is not marked is not it.",
        ),
    ] = False,
    detector: Annotated[
        str | None,
        Option(metavar="FILE", rich_help_panel=_MARK, help="Use a detector that was saved, instead of examples."),
    ] = None,
    scales: Annotated[
        str | None,
        Option(
            metavar="MIN:MAX",
            rich_help_panel=_SEARCH,
            help="Sizes to look for, relative to the examples, for example 0.5:2.",
            show_default="learnt from the examples",
        ),
    ] = None,
    any_rotation: Annotated[
        bool | None,
        Option(
            "--any-rotation/--upright",
            metavar="",
            rich_help_panel=_SEARCH,
            help="Look for turned ones too, or only for things that stand as the examples do.",
            show_default=False,
        ),
    ] = None,
    bands: Annotated[
        str | None,
        Option(
            metavar="LIST",
            rich_help_panel=_SEARCH,
            help="Use only these bands, counted from 1, for example 1-30,45.",
            show_default="all",
        ),
    ] = None,
    missing: Annotated[
        bool,
        Option(
            "--missing",
            rich_help_panel=_SEARCH,
            help="Pixels that are NaN or infinite are missing: look around them. Without it they are an error.",
        ),
    ] = False,
    top: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            rich_help_panel=_SEARCH,
            help="The N best finds of each picture, however they score.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        Option(
            metavar="P",
            min=0,
            max=1,
            rich_help_panel=_SEARCH,
            help="Finds that score at least P, between 0 and 1.",
            show_default="learnt with the detector",
        ),
    ] = None,
    memory: Annotated[
        str,
        Option(
            metavar="SIZE",
            rich_help_panel=_SEARCH,
            help="Pictures that would take more than this, for example 500MB, are read and searched tile by tile.",
        ),
    ] = "2GiB",
    scheduler: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            rich_help_panel=_SEARCH,
            help="Read and search large pictures on the workers of a Dask cluster, for example tcp://host:8786.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=_RESULT,
            help="Where to write finds.csv, finds.geojson, overlay.png and scores.png; with several pictures the last "
            "three in a folder for each.",
            show_default="finds; with --json nothing is written",
        ),
    ] = None,
    scores: Annotated[
        ScoreFormat,
        Option(
            rich_help_panel=_RESULT,
            help="Score at every pixel as a picture (scores.png), as numbers (scores.tif, float32), or not at all. Of "
            "pictures beyond --memory only scores.tif is made.",
        ),
    ] = ScoreFormat.PNG,
    crs: Annotated[
        bool,
        Option(
            "--crs",
            metavar="",
            rich_help_panel=_RESULT,
            help="Write finds.geojson in the coordinates of a georeferenced picture instead of pixels.",
        ),
    ] = False,
    coco: Annotated[
        bool, Option("--coco", metavar="", rich_help_panel=_RESULT, help="Write finds.coco.json, too.")
    ] = False,
    save: Annotated[
        str | None,
        Option(metavar="FILE", rich_help_panel=_RESULT, help="Save the detector, to be used again with --detector."),
    ] = None,
    as_json: Annotated[
        bool,
        Option(
            "--json", metavar="", rich_help_panel=_RESULT, help="Print the finds as JSON on stdout instead of a table."
        ),
    ] = False,
    debug: Annotated[
        bool,
        Option("--debug", metavar="", rich_help_panel=_RESULT, help="On an error, show where it happened (traceback)."),
    ] = False,
) -> int:
    """Mark a few examples of a thing, and find every other place where it is.

    [bold]wherever find sample:coins --example 132,28,47,45[/bold]

    finds the coins in a picture that comes along, prints where they are, and writes the folder [bold]finds[/bold]
    with a table (finds.csv), outlines (finds.geojson), the picture with the finds drawn in (overlay.png) and a heat
    map (scores.png). With your own: read the box of one example off in any image viewer, as X,Y,W,H: left edge, top
    edge, width and height in pixels.

    Something is missing? Add another --example. Something is wrong? Copy its box from the table into --not.
    To search more pictures later, --save the detector and use it with --detector.
    """
    from wherever.find.detector import Detector

    if detector is not None and (example or examples or negative or complete or inside):
        raise ValueError("--detector is already trained: leave out --example, --examples, --in, --not and --complete")
    if detector is not None and (scales or any_rotation is not None):
        raise ValueError(
            "--detector knows which scales and rotations it searches: leave out --scales, --any-rotation and "
            "--upright, or train another with them and --save it"
        )
    chosen = parse_bands(bands)
    span = parse_scales(scales)
    budget = as_bytes(memory)
    images = expand(images)
    for source in images:
        if not Path(source).is_dir():
            locate(source)  # a missing picture should be known before the work begins
    places_of = {source: _georeference(source) for source in images} if crs else {}
    marked = [] if detector else _gather(images, as_list(example), examples, as_list(inside), as_list(negative), label)
    folder = None if as_json and out is None else OutputFolder(out or "finds")
    with saved_to(save) as saved, folder or nullcontext(), Steps(len(images) + 1, quiet=as_json) as steps:
        if folder is not None:
            folder.check("finds.csv")
        steps.next("learning", long=True)
        if detector is not None:
            model = Detector.load(detector)
        else:
            model = train(marked, chosen, span, any_rotation, complete, missing=missing, memory=budget)
        if saved is not None:
            model.save(saved)
        places = _subfolders(images)
        results: list[tuple[Finds, float]] = []
        for source in images:
            steps.next(source)
            image = read(source, chosen, budget, missing=missing)
            examples_here = next((item.array() for item in marked if match_picture(item.source, [source])), None)
            try:
                found = _search(model, image, source, label, threshold, top, steps, budget, scheduler)
                # The answer to "is there one anywhere?" is the score of the best find, if there is one.
                anywhere = float(found.scores[0]) if len(found) else _anywhere(model, image, budget, scheduler)
                if folder is not None:
                    heat: npt.NDArray[Any] | None = None
                    if isinstance(image, Source) and scores is ScoreFormat.TIF:
                        _write_score_map(model, image, folder, places[source], budget, scheduler, steps)
                    elif scores is not ScoreFormat.NONE and not isinstance(image, Source):
                        heat = model.score_map(image)
                    _write(
                        folder, places[source], image, found, examples_here, heat, scores, places_of.get(source), coco
                    )
            except ValueError as error:
                raise ValueError(str(error) if source in str(error) else f"{source}: {error}") from error
            results.append((found, anywhere))
        if folder is not None:
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
    if as_json:
        used = threshold if threshold is not None else 0.0 if top is not None else float(model.threshold_)
        print(json.dumps(_as_json(results, used), indent=1))
    else:
        _print_results(model, results, folder, save)
    return 0 if any(len(found) for found, _ in results) else NOTHING_FOUND


def _gather(
    images: Sequence[str],
    example: Sequence[str],
    examples: str | None,
    inside: Sequence[str],
    negative: Sequence[str],
    label: str | None,
) -> list[Marked]:
    """Collect the examples and negatives of all options, by picture."""
    home = inside[0] if inside else images[0]
    marked = {home: Marked(home)}
    marked[home].boxes.extend(parse_box("--example", text) for text in example)
    marked[home].negatives.extend(parse_box("--not", text) for text in negative)
    if examples is not None:
        for item in marked_from_file(examples, label, [*inside, *images], home):
            there = marked.setdefault(item.source, Marked(item.source))
            there.boxes.extend(item.boxes)
            there.ignored.extend(item.ignored)
    if not any(item.boxes for item in marked.values()):
        if examples is not None:
            raise ValueError(f"--examples: {examples} holds no box; mark at least one example in it, or add --example")
        raise ValueError(
            "no example is marked: add --example X,Y,W,H (left, top, width, height in pixels), "
            "--examples FILE, or --detector FILE"
        )
    return [item for item in marked.values() if item.boxes or item.negatives]


def train(
    marked: Sequence[Marked],
    bands: list[int] | None,
    scales: tuple[float, float] | None,
    any_rotation: bool | None,
    complete: bool,
    *,
    missing: bool = False,
    memory: int = 2 << 30,
    model: Detector | None = None,
    **options: Any,
) -> Detector:
    """Fit a detector on marked pictures, with messages that name the picture and the option.

    A `model` keeps its parameters; other options are those of `Detector.fit`.
    """
    from wherever.find.detector import Detector

    model = Detector() if model is None else model
    pictures: list[Image] = []
    parts: list[Marked] = []
    for item in marked:
        given = read(item.source, bands, memory, missing=missing)
        whole = standing_for(given) if isinstance(given, Source) else given
        item.check(whole, "boxes", "the example")
        item.check(whole, "negatives", "--not")
        item.check(whole, "ignored", "--ignore")
        here = around_examples(given, item) if isinstance(given, Source) else [(given, item)]
        image = here[0][0]
        if pictures and count_bands(image) != count_bands(pictures[0]):
            raise ValueError(
                f"{item.source}: has {plural(count_bands(image), 'band')}, {marked[0].source} has "
                f"{count_bands(pictures[0])}; convert one of them, or choose bands that both have with --bands"
            )
        pictures += [picture for picture, _ in here]
        parts += [part for _, part in here]
    marked = parts
    settings: dict[str, Any] = {}
    if scales is not None:
        settings["scales"] = scales
    if any_rotation is not None:
        settings["any_rotation" if any_rotation else "upright"] = True
    negatives = [item.array("negatives") for item in marked] if any(item.negatives for item in marked) else None
    ignored = [item.array("ignored") for item in marked] if any(item.ignored for item in marked) else None
    boxes = [item.array() for item in marked]
    try:
        return model.set_params(**settings).fit(
            pictures, boxes, complete=complete, negatives=negatives, ignore=ignored, **options
        )
    except ValueError as error:
        # The detector counts pictures from 0; the user knows their names.
        text = re.sub(
            r"\b(?:images|boxes|negatives|ignore)\[(\d+)\]", lambda match: marked[int(match[1])].source, str(error)
        )
        raise ValueError(
            text if any(item.source in text for item in marked) else f"{marked[0].source}: {text}"
        ) from error


def _search(
    model: Detector,
    image: Image | Source,
    source: str,
    label: str | None,
    threshold: float | None,
    top: int | None,
    steps: Steps,
    memory: int,
    scheduler: str | None,
) -> Finds:
    if isinstance(image, Source):
        found = model.find_in(image, threshold=threshold, top=top, memory=memory, progress=steps.part, client=scheduler)
    else:
        found = model.find(image, threshold=threshold, top=top, progress=steps.part)
    return dataclasses.replace(
        found, image=source, label=label or found.label, image_size=(image.shape[1], image.shape[0])
    )


def _anywhere(model: Detector, image: Image | Source, memory: int, scheduler: str | None) -> float:
    if not isinstance(image, Source):
        return model.anywhere(image)
    best = model.find_in(image, top=1, memory=memory, client=scheduler)
    return float(best.scores[0]) if len(best) else 0.0


# -------------------------------------------------------------------------------------------------------------- results


def _georeference(source: str) -> Georeference:
    opened = windowed(source)
    place = None if opened is None else opened.georeference
    if place is None:
        raise ValueError(f"--crs: {source} is not georeferenced; leave out --crs to have pixels")
    return place


def _write_score_map(
    model: Detector, image: Source, folder: OutputFolder, place: str, memory: int, scheduler: str | None, steps: Steps
) -> None:
    """Write the score map of a large picture; what an interrupted run left of it is used."""
    from wherever.tiles import map as in_tiles

    target = folder.path / place / "scores.tif"
    target.parent.mkdir(parents=True, exist_ok=True)
    in_tiles(model, image, out=target, memory=memory, progress=steps.part, client=scheduler)


@contextmanager
def saved_to(path: str | None) -> Iterator[Path | None]:
    """Yield a temporary name beside `path` to save to; it takes the place of `path` if nothing goes wrong."""
    if path is None:
        yield None
        return
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"--save {path}: is a folder; give a file name, for example {target / 'thing.detector'}")
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(replacing(target))
        except OSError as error:
            raise ValueError(f"--save {path}: cannot write there ({error.strerror}); choose another place") from None
        yield temporary


def _subfolders(images: Sequence[str]) -> dict[str, str]:
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


def _write(
    folder: OutputFolder,
    place: str,
    image: Image | Source,
    found: Finds,
    examples: npt.NDArray[np.float64] | None,
    heat: npt.NDArray[Any] | None,
    scores: ScoreFormat,
    georeference: Georeference | None = None,
    coco: bool = False,
) -> None:
    folder.write(f"{place}finds.geojson", found.to_geojson(georeference=georeference))
    if coco:
        folder.write(f"{place}finds.coco.json", found.to_coco())
    boxes = found.boxes
    if isinstance(image, Source):
        image, step = overview(image)
        boxes, examples = boxes / step, None if examples is None else examples / step
    folder.write(f"{place}overlay.png", overlay_png(image, boxes, found.scores, examples))
    if heat is not None and scores is ScoreFormat.TIF:
        folder.write(f"{place}scores.tif", score_map_tif(heat))
    elif heat is not None:
        folder.write(f"{place}scores.png", heat_map_png(image, heat))


def _as_json(results: Sequence[tuple[Finds, float]], threshold: float) -> dict[str, Any]:
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


def _print_results(
    model: Detector, results: Sequence[tuple[Finds, float]], folder: OutputFolder | None, save: str | None
) -> None:
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
