"""`wherever find`: mark a few examples, get every other place where the thing occurs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy.typing as npt
from typer import Argument, Option

from wherever.cli.common import NOTHING_FOUND, as_list, match_picture, parse_bands, parse_scales
from wherever.cli.examples import gather, saved_to, train
from wherever.cli.large import expand, read
from wherever.cli.options import RESULT, SEARCH, AnyRotation, Bands, Debug, Scales
from wherever.cli.progress import Steps
from wherever.cli.results import ScoreFormat, print_results, results_as_json, subfolders, write, write_table
from wherever.cli.searching import Search, georeference
from wherever.files.images import locate
from wherever.files.outputs import OutputFolder
from wherever.files.sources import Source
from wherever.tiles.grid import as_bytes

if TYPE_CHECKING:
    from wherever.find.finds import Finds

_MARK = "What to find"


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
    scales: Scales = None,
    any_rotation: AnyRotation = None,
    bands: Bands = None,
    missing: Annotated[
        bool,
        Option(
            "--missing",
            rich_help_panel=SEARCH,
            help="Pixels that are NaN or infinite are missing: look around them. Without it they are an error.",
        ),
    ] = False,
    top: Annotated[
        int | None,
        Option(
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
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
            rich_help_panel=SEARCH,
            help="Finds that score at least P, between 0 and 1.",
            show_default="learnt with the detector",
        ),
    ] = None,
    memory: Annotated[
        str,
        Option(
            metavar="SIZE",
            rich_help_panel=SEARCH,
            help="Pictures that would take more than this, for example 500MB, are read and searched tile by tile.",
        ),
    ] = "2GiB",
    scheduler: Annotated[
        str | None,
        Option(
            metavar="ADDRESS",
            rich_help_panel=SEARCH,
            help="Read and search large pictures on the workers of a Dask cluster, for example tcp://host:8786.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=RESULT,
            help="Where to write finds.csv, finds.geojson, overlay.png and scores.png; with several pictures the last "
            "three in a folder for each.",
            show_default="finds; with --json nothing is written",
        ),
    ] = None,
    scores: Annotated[
        ScoreFormat,
        Option(
            rich_help_panel=RESULT,
            help="Score at every pixel as a picture (scores.png), as numbers (scores.tif, float32), or not at all. Of "
            "pictures beyond --memory scores.png is as small as overlay.png.",
        ),
    ] = ScoreFormat.PNG,
    crs: Annotated[
        bool,
        Option(
            "--crs",
            metavar="",
            rich_help_panel=RESULT,
            help="Write finds.geojson in the coordinates of a georeferenced picture instead of pixels.",
        ),
    ] = False,
    coco: Annotated[
        bool, Option("--coco", metavar="", rich_help_panel=RESULT, help="Write finds.coco.json, too.")
    ] = False,
    save: Annotated[
        str | None,
        Option(metavar="FILE", rich_help_panel=RESULT, help="Save the detector, to be used again with --detector."),
    ] = None,
    as_json: Annotated[
        bool,
        Option(
            "--json", metavar="", rich_help_panel=RESULT, help="Print the finds as JSON on stdout instead of a table."
        ),
    ] = False,
    debug: Debug = False,
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
    places_of = {source: georeference(source) for source in images} if crs else {}
    marked = [] if detector else gather(images, as_list(example), examples, as_list(inside), as_list(negative), label)
    folder = None if as_json and out is None else OutputFolder(out or "finds")
    with saved_to(save) as target, folder or nullcontext(), Steps(len(images) + 1, quiet=as_json) as steps:
        if folder is not None:
            folder.check("finds.csv")
        steps.next("learning", long=True)
        if detector is not None:
            model = Detector.load(detector)
        else:
            model = train(marked, chosen, span, any_rotation, complete, missing=missing, memory=budget)
        if target is not None:
            model.save(target)
        search = Search(model, label, threshold, top, budget, scheduler, steps)
        places = subfolders(images)
        results: list[tuple[Finds, float]] = []
        for source in images:
            steps.next(source)
            image = read(source, chosen, budget, missing=missing)
            examples_here = next((item.array() for item in marked if match_picture(item.source, [source])), None)
            try:
                found = search.finds(image, source)
                anywhere = search.anywhere(image, found)
                if folder is not None:
                    heat: npt.NDArray[Any] | None = None
                    if isinstance(image, Source) and scores is ScoreFormat.TIF:
                        search.write_score_map(image, folder.path / places[source] / "scores.tif")
                    elif scores is not ScoreFormat.NONE:
                        heat = search.heat(image)
                    place, where = places[source], places_of.get(source)
                    write(folder, place, image, found, examples_here, heat, scores, georeference=where, coco=coco)
            except ValueError as error:
                raise ValueError(str(error) if source in str(error) else f"{source}: {error}") from error
            results.append((found, anywhere))
        if folder is not None:
            write_table(folder, results)
    if as_json:
        used = threshold if threshold is not None else 0.0 if top is not None else float(model.threshold_)
        print(json.dumps(results_as_json(results, used), indent=1))
    else:
        print_results(model, results, folder, save)
    return 0 if any(len(found) for found, _ in results) else NOTHING_FOUND
