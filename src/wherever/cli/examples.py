"""What is marked on the command line, and the detector that is learnt from it, or saved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherever.cli.common import Marked, count_bands, marked_from_file, parse_box, plural
from wherever.cli.large import around_examples, read, standing_for
from wherever.files.images import Image
from wherever.files.outputs import replacing
from wherever.files.sources import Source

if TYPE_CHECKING:
    from wherever.find.detector import Detector


def gather(
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
