"""Real data as tensors: digits, photographs, sounds, sentences, blood and a scene of many bands, read from one folder.

================  ==========================================================  =======================================
`digits`          mnist-10k-images-idx3-ubyte.gz, mnist-10k-labels-...        LeCun et al. 1998, the IDX format
`cats_and_dogs`   cats_dogs_64.tar: train/cats/*.jpg, test/dogs/*.jpg, ...    Asirra (Elson et al. 2007)
`spoken_digits`   spoken_digits.tar: DIGIT_SPEAKER_NUMBER.wav                 Free Spoken Digit Dataset
`sentences`       rt-polarity.pos.gz, rt-polarity.neg.gz: one a line          Pang and Lee 2005
`blood`           bccd.tar: *.jpg, and boxes as *.xml (Pascal VOC)            BCCD
`hyperspectral`   jasper_ridge_198_bands.mat: Y, A, maxValue                  AVIRIS, Jasper Ridge
================  ==========================================================  =======================================

Every reader takes the folder, and raises a `DataError` that names the file if it is missing or not what it should be.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.io import loadmat, wavfile
from torch import Tensor

RATE = 8000  # samples of a spoken digit in a second
BLOOD_CELLS = ("RBC", "WBC", "Platelets")
MATERIALS = ("tree", "water", "soil", "road")
Cell: TypeAlias = tuple[str, tuple[float, float, float, float]]


class DataError(ValueError):
    """A file of data that is missing or cannot be read: one line that names it."""


@dataclass(frozen=True)
class Labelled:
    """Examples with what is to be told of each.

    Attributes
    ----------
    x : Tensor, (N, ...)
        The examples; images are float32 (N, C, H, W) from 0 to 1.
    y : Tensor, (N,) or (N, ...)
        The class of each as int64, or a map of classes.
    classes : tuple of str
        What the classes are called.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> Labelled:
        return Labelled(self.x[index], self.y[index], self.classes)

    def sample(self, n: int | None) -> Labelled:
        """Give the first n examples of classes in turn, so that each has its share; all if `n` is None."""
        if n is None or n >= len(self):
            return self
        if self.y.ndim > 1:
            return self[:n]
        rank = torch.empty_like(self.y)
        for c in self.y.unique():
            rank[self.y == c] = torch.arange(int((self.y == c).sum()))
        return self[rank.argsort(stable=True)[:n].sort().values]


# ------------------------------------------------------------------------------------------------------------- digits


def digits(folder: Path) -> tuple[Labelled, Labelled]:
    """Read handwritten digits: the first four fifths to train on, the others to test.

    Returns
    -------
    two Labelled, x (N, 1, 28, 28)
        8,000 and 2,000 of the 10,000.
    """
    images = _idx(folder / "mnist-10k-images-idx3-ubyte.gz", dimensions=3)
    labels = _idx(folder / "mnist-10k-labels-idx1-ubyte.gz", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} digits, but {len(labels)} labels")
    every = Labelled(_pixels(images[:, None]), torch.from_numpy(labels.astype(np.int64)), tuple("0123456789"))
    first = len(every) * 4 // 5
    return every[:first], every[first:]


def _idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read the IDX format: two zeros, the type (8: bytes), how many sizes, the sizes (big-endian int32), values."""
    with _errors(path):
        content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * dimensions
    sizes = tuple(np.frombuffer(content[4:start], ">i4").tolist())
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != start + int(np.prod(sizes)):
        raise DataError(f"{path}: not a whole IDX file of bytes with {dimensions} dimensions")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


# -------------------------------------------------------------------------------------------------------- photographs


def cats_and_dogs(folder: Path) -> tuple[Labelled, Labelled]:
    """Read photographs of cats (class 0) and dogs (1).

    Returns
    -------
    two Labelled, x (N, 3, 64, 64)
        2,000 to train on and 800 to test, cats and dogs in turn.
    """
    path = folder / "cats_dogs_64.tar"
    kinds = ("cats", "dogs")
    found: dict[tuple[str, str], list[npt.NDArray[np.uint8]]] = {}
    for name, jpeg in _members(path, ".jpg"):
        with _errors(path):
            found.setdefault((name.parent.parent.name, name.parent.name), []).append(_decoded(jpeg))
    parts = []
    for part in ("train", "test"):
        cats, dogs = (found.get((part, kind), []) for kind in kinds)
        if not cats or not dogs:
            raise DataError(f"{path}: no pictures named {part}/cats/NAME.jpg and {part}/dogs/NAME.jpg")
        images, labels = np.stack(cats + dogs), torch.arange(len(cats) + len(dogs)) >= len(cats)
        in_turn = torch.cat([torch.arange(len(cats)), torch.arange(len(dogs))]).argsort(stable=True)
        parts.append(Labelled(_pixels(images.transpose(0, 3, 1, 2)), labels.long(), kinds)[in_turn])
    return parts[0], parts[1]


def blood(folder: Path) -> list[tuple[Tensor, list[Cell]]]:
    """Read photographs of blood with the boxes of their cells.

    Returns
    -------
    list of (image, boxes)
        In the order of their names. Each image is (3, 480, 640), uint8, which takes a quarter of the memory of floats;
        each box is one of `BLOOD_CELLS`, and x0, y0, x1, y1 in pixels.
    """
    path = folder / "bccd.tar"
    files = {name.name: content for name, content in _members(path, (".jpg", ".xml"))}
    pictures = []
    for name in sorted(files):
        if name.endswith(".jpg"):
            jpeg, xml = files[name], files.get(name.removesuffix("jpg") + "xml")
            if xml is None:
                raise DataError(f"{path}: {name} has no boxes (.xml)")
            with _errors(path):
                pictures.append((torch.from_numpy(_decoded(jpeg).transpose(2, 0, 1).copy()), list(_voc(xml))))
    return pictures


def _voc(xml: bytes) -> Iterator[Cell]:
    for item in ElementTree.fromstring(xml).iter("object"):
        x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax"))
        yield item.findtext("name", ""), (x0, y0, x1, y1)


def hyperspectral(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the scene of many bands, and how much of each material is in each pixel.

    Returns
    -------
    Tensor (198, 100, 100), Tensor (4, 100, 100)
        Reflectance, divided by the file's maxValue; abundances of `MATERIALS`, which add up to 1.
    """
    path = folder / "jasper_ridge_198_bands.mat"
    with _errors(path):
        scene = loadmat(path.resolve(strict=True))
    if not {"Y", "A", "maxValue", "nRow", "nCol"} <= set(scene):
        raise DataError(f"{path}: needs the variables Y, A, maxValue, nRow and nCol")
    size = int(scene["nCol"].item()), int(scene["nRow"].item())  # pixels go down the columns first
    bands, abundances = (
        torch.from_numpy(np.ascontiguousarray(v.reshape(-1, *size).transpose(0, 2, 1), np.float32))
        for v in (scene["Y"], scene["A"])
    )
    return bands / float(scene["maxValue"].item()), abundances


def _decoded(jpeg: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _pixels(values: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(values / np.float32(255))


# -------------------------------------------------------------------------------------------------- sounds, sentences


@dataclass(frozen=True)
class Spoken:
    """One spoken digit: its samples at `RATE` from -1 to 1, which digit it is, and who speaks."""

    samples: Tensor
    digit: int
    speaker: str


def spoken_digits(folder: Path) -> list[Spoken]:
    """Read spoken digits, in the order of their names; lengths differ."""
    path = folder / "spoken_digits.tar"
    found = []
    for name, content in sorted(_members(path, ".wav")):
        with _errors(path):
            rate, samples = wavfile.read(io.BytesIO(content))
        parts = name.stem.split("_")
        if len(parts) != 3 or not parts[0].isdecimal() or rate != RATE or samples.dtype != np.int16 or samples.ndim > 1:
            raise DataError(
                f"{path}: {name} is not DIGIT_SPEAKER_NUMBER.wav of one channel, 16 bits, {RATE} samples a second"
            )
        found.append(Spoken(torch.from_numpy(samples / np.float32(2**15)), int(parts[0]), parts[1]))
    return found


def sentences(folder: Path) -> tuple[list[str], Tensor]:
    """Read sentences about films, and whether each is positive (1) or negative (0); negative ones come first."""
    texts: list[str] = []
    counts = []
    for name in ("neg", "pos"):
        path = folder / f"rt-polarity.{name}.gz"
        with _errors(path):
            lines = gzip.decompress(path.read_bytes()).decode("latin-1").split("\n")
        texts += [line.strip() for line in lines if line.strip()]
        counts.append(len(texts))
    return texts, (torch.arange(len(texts)) >= counts[0]).long()


# -------------------------------------------------------------------------------------------------------------- files


def _members(path: Path, endings: str | tuple[str, ...]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Read the files in an archive whose names end so, without unpacking it."""
    with _errors(path), tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(endings) else None
            if file is not None:
                yield PurePosixPath(member.name), file.read()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Name the file in whatever its reader raises."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: not there; --data names the folder that holds it") from None
    except DataError:
        raise
    # Readers raise whatever their parsers happen to raise on damaged content.
    except (OSError, ValueError, TypeError, EOFError, tarfile.TarError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
