"""What the commands share: one-line errors and exit codes, boxes and lists from the command line, marked pictures."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import FrameType
from typing import Any, NoReturn, ParamSpec

import numpy as np
import numpy.typing as npt
from rich.console import Console

from wherever.files.boxes import Annotation, read_boxes
from wherever.files.images import Image, read_image

NOTHING_FOUND, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

Parameters = ParamSpec("Parameters")
Box = tuple[float, float, float, float]


def guarded(command: Callable[Parameters, int]) -> Callable[Parameters, None]:
    """Make a command end with its exit code, and every error in it with one line on stderr (a traceback if `debug`)."""

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        debug = bool(kwargs.get("debug", False))
        try:
            with _ending_on_signals():
                code = command(*args, **kwargs)
                sys.stdout.flush()
        except KeyboardInterrupt:
            fail("interrupted; nothing was written", INTERRUPTED)
        except BrokenPipeError:
            # Whoever read the output has seen enough; keep Python from complaining when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(PIPE_CLOSED)
        except Exception as error:
            if debug:
                traceback.print_exc()
                sys.exit(BAD_INPUT)
            fail(explain(error))
        sys.exit(code)

    # typer reads the signature; the wrapped command returns nothing that it should print.
    run.__annotations__ = {**command.__annotations__, "return": None}
    return run


class Terminal(Console):
    """A terminal on which text is printed as it is, and which leaves it to :func:`guarded` when nobody reads it."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, where rich would end the program with the exit code of "nothing found"."""
        raise BrokenPipeError


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let a request to end (SIGTERM, or SIGHUP of a closed terminal) clean up as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        _asked_to_end.append(number)
        raise _ending(number)

    if threading.current_thread() is not threading.main_thread():  # Python sets signal handlers only there
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        _asked_to_end.clear()


_asked_to_end: list[int] = []


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def end_if_asked() -> None:
    """End if a signal asked for it whose exception was lost: Python drops one that is raised in a finalizer."""
    if _asked_to_end:
        raise _ending(_asked_to_end[0])


def explain(error: Exception) -> str:
    """Say in one line what went wrong and what can be done about it."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory{f': {text}' if text else ''}; use smaller pictures or fewer bands"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; choose another place, free some space or change the permissions"
    if isinstance(error, ValueError | TypeError | OSError | ImportError) and text:
        return text
    return f"unexpected {type(error).__name__}: {text or 'no message'}; run again with --debug to see where"


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """End the command with a message on stderr."""
    print(f"wherever: {message}", file=sys.stderr)
    sys.exit(code)


def note(message: str) -> None:
    """Print a remark on stderr, where it does not disturb results."""
    print(f"wherever: {message}", file=sys.stderr)


# ------------------------------------------------------------------------------------------- values on the command line


def parse_box(option: str, text: str) -> Box:
    """Turn "X,Y,W,H" into x0, y0, x1, y1."""
    try:
        x, y, w, h = (float(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise ValueError(
            f"{option} {text}: a box is X,Y,W,H: left edge, top edge, width and height in pixels, "
            "for example 132,28,47,45"
        ) from None
    if not all(np.isfinite([x, y, w, h])):
        raise ValueError(f"{option} {text}: the four numbers must be finite")
    if w <= 0 or h <= 0:
        raise ValueError(
            f"{option} {text}: width and height must be more than 0, got {w:g} x {h:g}; "
            "a box is X,Y,W,H, not two corners"
        )
    return x, y, x + w, y + h


def parse_scales(text: str | None) -> tuple[float, float] | None:
    """Turn "0.5:2" into (0.5, 2)."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(
            f"--scales {text}: write SMALLEST:LARGEST relative to the examples, for example 0.5:2"
        ) from None
    if not (0 < low <= high < np.inf):
        raise ValueError(f"--scales {text}: needs 0 < SMALLEST <= LARGEST, for example 0.5:2")
    return low, high


def parse_bands(text: str | None) -> list[int] | None:
    """Turn "1-30,45" into [0, ..., 29, 44]."""
    if text is None:
        return None
    bands: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()):
            raise ValueError(f"--bands {text}: write numbers and ranges counted from 1, for example 1-30,45")
        low, high = int(first), int(last)
        if not 1 <= low <= high:
            raise ValueError(
                f"--bands {text}: {part} is no range; bands are counted from 1, the smaller number comes first"
            )
        if high > 100_000:
            raise ValueError(f"--bands {text}: no picture has {high} bands")
        bands.extend(range(low - 1, high))
    return bands


def plot_format(path: Path) -> str:
    """Find out, before anything is measured, whether the plot can be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ImportError('--plot needs matplotlib: pip install "wherever[find]"') from None
    ending = path.suffix.lower().removeprefix(".")
    known = FigureCanvasAgg.get_supported_filetypes()
    if ending not in known:
        raise ValueError(f"--plot {path}: the name must end in one of .{', .'.join(sorted(known))}")
    if not path.parent.is_dir():
        raise ValueError(f"--plot {path}: the folder {path.parent} does not exist")
    return ending


def load_image(source: str, bands: list[int] | None = None, *, missing: bool = False) -> Image:
    """Read a picture, and choose bands of it; ValueError if pixels are not numbers, unless some may be missing."""
    image = _chosen_bands(source, read_image(source), bands)
    holes = count_missing(image)
    if holes and not missing:
        raise ValueError(
            f"{source}: {plural(holes, 'pixel')} with NaN or infinite values; find with --missing works around them, "
            "or fill them first"
        )
    return image


def _chosen_bands(source: str, image: Image, bands: list[int] | None) -> Image:
    if bands is None:
        return image
    have = 1 if image.ndim == 2 else image.shape[2]
    if max(bands) >= have:
        raise ValueError(
            f"{source}: has {have} band{'s' if have > 1 else ''}, but --bands asks for number {max(bands) + 1}"
        )
    return np.ascontiguousarray(image.reshape(*image.shape[:2], have)[:, :, bands])


def count_bands(image: Image) -> int:
    """Return the number of bands of a picture (H, W) or (H, W, C)."""
    return 1 if image.ndim == 2 else int(image.shape[2])


def count_missing(image: Image) -> int:
    """Return the number of pixels of which some band is not finite."""
    if image.dtype.kind != "f":
        return 0
    bad = ~np.isfinite(image)
    return int(np.count_nonzero(bad if bad.ndim == 2 else bad.any(axis=2)))


# ------------------------------------------------------------------------------------------------------ marked pictures


@dataclass
class Marked:
    """A picture with boxes marked on it: what is sought, what is not, and what counts neither way."""

    source: str
    boxes: list[Box] = field(default_factory=list)
    negatives: list[Box] = field(default_factory=list)
    ignored: list[Box] = field(default_factory=list)

    def array(self, which: str = "boxes") -> npt.NDArray[np.float64]:
        """Return the boxes (or "negatives", "ignored") as an array (n, 4)."""
        return np.array(getattr(self, which), dtype=np.float64).reshape(-1, 4)

    def check(self, image: Image, which: str, option: str) -> None:
        """Raise ValueError if a box has its centre outside of the picture or is larger than it."""
        height, width = image.shape[:2]
        for x0, y0, x1, y1 in getattr(self, which):
            shown = f"{x0:g},{y0:g},{x1 - x0:g},{y1 - y0:g}"
            size = f"{width} x {height} pixels"
            if x1 - x0 > width or y1 - y0 > height:
                raise ValueError(f"{option} {shown} is larger than {self.source} ({size}); mark one thing in it")
            if not (0 < (x0 + x1) / 2 < width and 0 < (y0 + y1) / 2 < height):
                raise ValueError(
                    f"{option} {shown} lies outside of {self.source} ({size}); a box is X,Y,W,H in pixels of that "
                    "picture (--in names the picture if it is not the first)"
                )


def choose_label(path: str | Path, annotations: Sequence[Annotation], label: str | None) -> list[Annotation]:
    """Keep the annotations with a label, and those to ignore; ValueError if there are several labels and none given."""
    labels = sorted({item.label or "" for item in annotations if not item.ignore})
    if label is not None:
        if label not in labels:
            there = ", ".join(name or "(none)" for name in labels) or "nothing"
            raise ValueError(f"{path}: nothing is labelled {label!r}; there is {there}")
    elif len(labels) > 1:
        raise ValueError(
            f"{path}: holds several kinds of thing ({', '.join(labels)}); choose one with --label {labels[0]}"
        )
    return [item for item in annotations if item.ignore or label is None or item.label == label]


def match_picture(name: str, sources: Sequence[str]) -> str | None:
    """Find the picture that a file of boxes means among those at hand: same path, else same name, else same stem."""
    tests: tuple[Callable[[str], str], ...] = (str, lambda text: _base(text), lambda text: PurePath(_base(text)).stem)
    for test in tests:
        matches = list(dict.fromkeys(source for source in sources if test(source) == test(name)))
        if len(matches) > 1:
            raise ValueError(f"{name}: several pictures have that name ({', '.join(matches)}); name it with its folder")
        if matches:
            return matches[0]
    return None


def _base(name: str) -> str:
    # A file made on Windows may name pictures with backslashes; a sample's name is what follows the colon.
    return PurePath(name.replace("\\", "/")).name.removeprefix("sample:")


def find_picture(name: str, sources: Sequence[str], boxes_file: Path) -> str:
    """Return the source of the picture that a file of boxes names: one of `sources`, or in usual places beside it."""
    found = match_picture(name, sources)
    if found is not None:
        return found
    folder = boxes_file if boxes_file.is_dir() else boxes_file.parent
    for place in (
        folder,
        folder / "images",
        folder / "JPEGImages",
        folder.parent / "JPEGImages",
        folder.parent / "images",
    ):
        for candidate in (place / name, place / _base(name)):
            if candidate.is_file():
                return str(candidate)
    if name.startswith("sample:"):
        return name
    raise ValueError(f"{boxes_file}: names the picture {name}, which is not there; add it with --in PATH/{_base(name)}")


def marked_from_file(path: str, label: str | None, sources: Sequence[str], home: str | None) -> list[Marked]:
    """Read a file of boxes and sort them by picture; boxes without a picture's name are on `home`."""
    annotations = choose_label(path, read_boxes(path), label)
    pictures: dict[str, Marked] = {}
    names: dict[str, str] = {}
    for item in annotations:
        if item.image is None:
            if home is None:
                raise ValueError(f"{path}: does not say on which picture the boxes are; name it with --in PICTURE")
            source = home
        else:
            if item.image not in names:
                names[item.image] = find_picture(item.image, sources, Path(path))
            source = names[item.image]
        picture = pictures.setdefault(source, Marked(source))
        (picture.ignored if item.ignore else picture.boxes).append(item.box)
    return list(pictures.values())


def by_picture(path: str, annotations: Sequence[Annotation], images: Sequence[str]) -> dict[str, Marked]:
    """Sort the truth by picture; with `images`, only what is on these."""
    pictures: dict[str, Marked] = {image: Marked(image) for image in images}
    places: dict[str, str | None] = {}
    for item in annotations:
        if item.image is None:
            if len(images) != 1:
                raise ValueError(
                    f"{path}: does not say on which picture each box is; add a column image, or give one IMAGE"
                )
            source: str | None = images[0]
        else:
            if item.image not in places:
                places[item.image] = (
                    match_picture(item.image, images) if images else find_picture(item.image, [], Path(path))
                )
            source = places[item.image]
        if source is not None:
            there = pictures.setdefault(source, Marked(source))
            (there.ignored if item.ignore else there.boxes).append(item.box)
    if not any(item.boxes for item in pictures.values()):
        raise ValueError(f"{path}: marks nothing on the pictures to evaluate; are the pictures' names the same?")
    return pictures


def plural(number: int, word: str) -> str:
    """Write "1 find", "2 finds"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def as_list(values: Any) -> list[Any]:
    """Turn the None that typer gives for an option that was not used into an empty list."""
    return list(values or [])
