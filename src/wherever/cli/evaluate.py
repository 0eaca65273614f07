"""`wherever evaluate`: how good finds are, measured against pictures in which everything is marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from wherever.cli.common import (
    Marked,
    Terminal,
    as_list,
    by_picture,
    choose_label,
    load_image,
    marked_from_file,
    note,
    parse_bands,
    parse_scales,
    plural,
)
from wherever.cli.examples import train
from wherever.cli.options import RESULT, SEARCH, AnyRotation, Bands, Debug, Scales
from wherever.cli.progress import Steps
from wherever.files.boxes import Annotation, read_boxes
from wherever.files.images import locate
from wherever.files.outputs import OutputFolder
from wherever.files.pictures import precision_recall_png

if TYPE_CHECKING:
    from wherever.find.detector import Detector
    from wherever.find.finds import Finds

_HOW = "What is evaluated (one of these)"
MATCHES: tuple[Literal["iou", "centre"], ...] = ("iou", "centre")


@dataclass
class Outcome:
    """What came of one kind of thing: counts, average precisions, and their curves, by the way of matching."""

    label: str | None
    truth: int
    ignored: int
    results: dict[str, Any]


def evaluate(
    images: Annotated[
        list[str] | None,
        Argument(
            metavar="IMAGE",
            show_default=False,
            help="Pictures to evaluate on; those of them that the truth does not name hold nothing. "
            "Without any: all that the truth names.",
        ),
    ] = None,
    truth: Annotated[
        str,
        Option(
            metavar="FILE_OR_FOLDER",
            show_default=False,
            help="What really is in the pictures: CSV with a column image, COCO JSON, GeoJSON, Pascal VOC XML or a "
            "folder of it. Boxes marked difficult, iscrowd or ignore count neither way.",
        ),
    ] = "",
    label: Annotated[
        str | None, Option(metavar="NAME", help="Which kind of thing of the truth.", show_default="each kind in turn")
    ] = None,
    detector: Annotated[
        str | None, Option(metavar="FILE", rich_help_panel=_HOW, help="A detector that `wherever find --save` made.")
    ] = None,
    examples: Annotated[
        str | None,
        Option(
            metavar="FILE",
            rich_help_panel=_HOW,
            help="Learn from the examples in this file; the pictures they are on are left out of the evaluation.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        Option(
            metavar="K",
            min=2,
            rich_help_panel=_HOW,
            help="Cross-validation: find in each K-th of the pictures what was learnt from the truth of the others.",
            show_default=False,
        ),
    ] = None,
    pictures: Annotated[
        int | None,
        Option(
            "--train",
            metavar="N",
            min=1,
            rich_help_panel=SEARCH,
            help="With --folds: learn from at most N pictures each time.",
            show_default="all others",
        ),
    ] = None,
    inside: Annotated[
        list[str] | None,
        Option(
            "--in",
            metavar="PICTURE",
            rich_help_panel=SEARCH,
            help="With --examples: a picture they are on. Repeatable.",
        ),
    ] = None,
    complete: Annotated[
        bool,
        Option(
            "--complete",
            metavar="",
            rich_help_panel=SEARCH,
            help="With --examples: every occurrence in their pictures is marked.",
        ),
    ] = False,
    scales: Scales = None,
    any_rotation: AnyRotation = None,
    bands: Bands = None,
    out: Annotated[
        str | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=RESULT,
            help="Where to write precision-recall.png and evaluation.json.",
            show_default="evaluation; with --json nothing is written",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        Option(
            "--json", metavar="", rich_help_panel=RESULT, help="Print the result as JSON on stdout instead of a table."
        ),
    ] = False,
    debug: Debug = False,
) -> int:
    """Measure how good finds are, against pictures in which everything is marked.

    [bold]wherever evaluate --truth annotations/ --folds 3 --train 10[/bold]

    learns three times from ten of the pictures that the truth names, finds in the third of the pictures that was held
    out, and prints the average precision (AP, 1 is perfect): once where a find is right if it overlaps a marked box by
    half (intersection over union, IoU), once where its centre is less than half the thing's size from the marked one's.
    """
    if not truth:
        raise ValueError("--truth is missing: name a file or folder with the boxes of everything in the pictures")
    ways = [name for name, way in (("--detector", detector), ("--examples", examples), ("--folds", folds)) if way]
    if len(ways) != 1:
        raise ValueError(
            f"choose one of --detector FILE, --examples FILE and --folds K; got {' and '.join(ways) or 'none'}"
        )
    chosen, span = parse_bands(bands), parse_scales(scales)
    annotations = read_boxes(truth, allow_empty=True)
    empty = sum(item.box[0] == item.box[2] or item.box[1] == item.box[3] for item in annotations)
    if empty:
        note(f"{truth}: {plural(empty, 'box')} without width or height left out".replace("boxs", "boxes"))
        annotations = [item for item in annotations if item.box[0] < item.box[2] and item.box[1] < item.box[3]]
    labels = [label] if label is not None or not folds else _labels(annotations)
    truths = {name: by_picture(truth, choose_label(truth, annotations, name), as_list(images)) for name in labels}
    sources = list(images or dict.fromkeys(source for boxes in truths.values() for source in boxes))
    for source in sources:
        locate(source)

    def fit(marked: Sequence[Marked], everything: bool) -> Detector:
        return train(marked, chosen, span, any_rotation, everything)

    total = (folds or 1) * len(labels) + len(sources) * len(labels)
    folder = None if as_json and out is None else OutputFolder(out or "evaluation")
    with folder or nullcontext(), Steps(total, quiet=as_json) as steps:
        outcomes = []
        for name in labels:
            here = truths[name]
            if folds:
                runs = _cross_validation(sources, here, folds, pictures, lambda marked: fit(marked, True), steps)
            elif detector is not None:
                runs = _one_detector(_loaded(detector), sources)
            else:
                marked = marked_from_file(str(examples), label, [*as_list(inside), *sources], _first(inside))
                used = {item.source for item in marked if item.boxes}
                held_out = [source for source in sources if source not in used]
                if not held_out:
                    raise ValueError(f"{examples}: its examples are on every picture; evaluate on other IMAGEs")
                runs = _one_detector(fit([item for item in marked if item.boxes], complete), held_out)
            outcomes.append(_measure(name, runs, here, chosen, steps))
        how = (
            f"{folds}-fold cross-validation"
            if folds
            else f"detector {detector}"
            if detector
            else f"examples {examples}"
        )
        report = _report(how, len(sources), outcomes)
        if folder is not None:
            folder.write("evaluation.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
            folder.write("precision-recall.png", _plot(outcomes))
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _print_report(report, folder)
    return 0


Run = tuple[str, "Detector"]


def _first(values: Sequence[str] | None) -> str | None:
    return values[0] if values else None


def _labels(annotations: Sequence[Annotation]) -> list[str | None]:
    names = sorted({item.label for item in annotations if not item.ignore and item.label is not None})
    if names and any(item.label is None for item in annotations if not item.ignore):
        raise ValueError("some boxes of the truth have a label and some have none; label all of them or choose --label")
    return list(names) or [None]


def _loaded(path: str) -> Detector:
    from wherever.find.detector import Detector

    return Detector.load(path)


def _one_detector(model: Detector, sources: Sequence[str]) -> Iterator[Run]:
    for source in sources:
        yield source, model


def _cross_validation(
    sources: Sequence[str],
    truth: dict[str, Marked],
    folds: int,
    most: int | None,
    fit: Callable[[Sequence[Marked]], Detector],
    steps: Steps,
) -> Iterator[Run]:
    """Yield each picture with a detector that was fitted without it."""
    if len(sources) < folds:
        raise ValueError(f"--folds {folds} needs at least {folds} pictures, there are {len(sources)}")
    for fold in range(folds):
        steps.next(f"learning, fold {fold + 1} of {folds}")
        others = [truth[source] for number, source in enumerate(sources) if number % folds != fold and source in truth]
        marked = [item for item in others if item.boxes]
        if not marked:
            raise ValueError(f"fold {fold + 1}: none of the other pictures holds an example; use fewer --folds")
        if most is not None and len(marked) > most:
            # Spread over the whole list, so that pictures that follow one another do not stand for all.
            marked = [marked[int(index)] for index in np.linspace(0, len(marked) - 1, most).round()]
        model = fit(marked)
        for number, source in enumerate(sources):
            if number % folds == fold:
                yield source, model


def _measure(
    label: str | None,
    runs: Iterator[Run],
    truth: dict[str, Marked],
    bands: list[int] | None,
    steps: Steps,
) -> Outcome:
    from wherever.find.evaluate import average_precision

    finds: list[Finds] = []
    boxes: list[npt.NDArray[np.float64]] = []
    ignored: list[npt.NDArray[np.float64]] = []
    for source, model in runs:
        steps.next(source)
        try:
            finds.append(model.find(load_image(source, bands), threshold=0.0))
        except ValueError as error:
            raise ValueError(str(error) if source in str(error) else f"{source}: {error}") from error
        marked = truth.get(source, Marked(source))
        boxes.append(marked.array())
        ignored.append(marked.array("ignored"))
    count = sum(len(item) for item in boxes)
    if count == 0:
        raise ValueError(f"the pictures to evaluate hold no marked {label or 'thing'}; give others")
    results: dict[str, Any] = {match: average_precision(finds, boxes, match=match, ignore=ignored) for match in MATCHES}
    return Outcome(label, count, sum(len(item) for item in ignored), results)


def _report(how: str, pictures: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    from wherever import __version__

    rows = []
    for item in outcomes:
        row: dict[str, Any] = {"label": item.label, "truth": item.truth, "ignored": item.ignored}
        for match, result in item.results.items():
            row[f"ap_{match}"] = float(result.ap)
        for match, result in item.results.items():
            row[f"curve_{match}"] = _curve(result)
        rows.append(row)
    mean = {f"ap_{match}": float(np.mean([row[f"ap_{match}"] for row in rows])) for match in MATCHES}
    return {"wherever": __version__, "how": how, "pictures": pictures, "mean": mean, "labels": rows}


def _curve(result: Any) -> dict[str, list[float]]:
    """Return the points of a curve at which something right was found; the others follow from them."""
    recall = np.asarray(result.recall, dtype=np.float64)
    keep = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
    return {
        name: np.round(np.asarray(getattr(result, name), dtype=np.float64)[keep], 5).tolist()
        for name in ("scores", "recall", "precision")
    }


def _plot(outcomes: Sequence[Outcome]) -> bytes:
    curves = []
    for item in outcomes:
        for match, result in item.results.items():
            name = f"{item.label or 'thing'}, {'IoU 0.5' if match == 'iou' else 'centre'}: AP {result.ap:.2f}"
            curves.append((name, np.asarray(result.recall), np.asarray(result.precision)))
    return precision_recall_png(curves, len(MATCHES))


def _print_report(report: dict[str, Any], folder: OutputFolder | None) -> None:
    console = Terminal()
    title = f"{report['how']}, {plural(report['pictures'], 'picture')}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="", header_style="dim")
    for name in ("", "marked", "AP (IoU 0.5)", "AP (centre)"):
        table.add_column(name, justify="right" if name else "left")
    for row in report["labels"]:
        table.add_row(
            Text(row["label"] or "thing"), str(row["truth"]), f"{row['ap_iou']:.3f}", f"{row['ap_centre']:.3f}"
        )
    if len(report["labels"]) > 1:
        mean = report["mean"]
        table.add_row("mean", "", f"{mean['ap_iou']:.3f}", f"{mean['ap_centre']:.3f}", style="bold")
    console.print(table)
    if folder is not None:
        files = " (evaluation.json, precision-recall.png)"
        console.print(Text.assemble("Written: ", (f"{folder.path}/", "bold"), files))
