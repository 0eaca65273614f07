"""Maps written tile by tile, in any order and over several runs: tiled TIFF, Zarr or .npy that appear when complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from wherever.files.georeference import SPACING, Georeference
from wherever.files.images import quiet
from wherever.files.outputs import replacing
from wherever.files.sources import Interval

try:
    import fcntl
except ModuleNotFoundError:  # where there are no such locks, nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

SUFFIXES = (".tif", ".tiff", ".zarr", ".npy")
PIECE = 256  # rows and columns of a tile of the file
_LEVEL = 1  # of compression: more takes longer than what it saves, on maps of floats
_JOURNAL, _DATA = "journal", "data"


class MapFile:
    """A map (H, W, bands) on its way into a file.

    Parts are kept in a folder beside the file, `NAME.parts`: a journal, and all parts that it lists, compressed. A
    run that ends before all are there leaves the folder, and another run with the same key goes on from it. The file
    itself is written from the parts when all are there, always in the same order, so it has the same bytes however
    often the work was interrupted.

    Parameters
    ----------
    path : str or Path
        The file: .tif, .tiff, .zarr or .npy.
    shape : (int, int, int)
        Rows, columns, bands.
    dtype : dtype
    key : str
        Tells this map from others; parts of another key are thrown away.
    resume : bool
        Use parts that are there.
    georeference, spacing
        Of the map's pixels; kept in TIFF and Zarr.

    Raises
    ------
    ValueError
        If the file's suffix is of no known format.
    OSError
        If nothing can be written there.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int, int],
        dtype: Any,
        key: str,
        *,
        resume: bool = True,
        georeference: Georeference | None = None,
        spacing: tuple[float, float] | None = None,
        _head: Any = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"out: {path} must end in {', '.join(SUFFIXES)}")
        if self.path.is_dir() and self.path.suffix.lower() != ".zarr":
            raise ValueError(f"out: {path} is a folder; give a file name")
        if self.path.suffix.lower() == ".zarr":
            _zarr()
            if self.path.exists() and not any((self.path / name).exists() for name in ("zarr.json", ".zarray")):
                raise ValueError(f"out: {path} is there and no Zarr array; choose another name")
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.georeference, self.spacing = georeference, spacing
        self._parts = self.path.with_name(self.path.name + ".parts")
        head = json.dumps([1, key, list(shape), self.dtype.str])
        key = hashlib.sha256(head.encode()).hexdigest()
        self._head = _head or {"key": key, "shape": list(shape), "dtype": self.dtype.str}
        self._records: dict[int, list[list[int]]] = {}
        try:
            self._parts.mkdir(exist_ok=True)
            self._lock = self._alone()
            end = self._recover() if resume else 0
            self._data: IO[bytes] = (self._parts / _DATA).open("r+b" if end else "wb")
            self._data.truncate(end)
            self._data.seek(end)
            self._journal: IO[str] = (self._parts / _JOURNAL).open("a" if end else "w")
            if not end:
                self._records = {}
                self._journal.write(json.dumps(self._head) + "\n")
                self._journal.flush()
        except OSError as error:
            where = self.path.parent
            raise OSError(
                error.errno, f"cannot write {self.path}: {error.strerror} ({where}); choose another place"
            ) from error

    def _alone(self) -> IO[bytes]:
        """Hold the parts for this run: two that write the same ones would spoil them."""
        lock = (self._parts / "lock").open("wb")
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise OSError(errno.EBUSY, "another run is writing it") from None
            except OSError:  # a file system without locks
                pass
        return lock

    def _recover(self) -> int:
        """Read the journal; return how many bytes of the parts it vouches for."""
        try:
            lines = (self._parts / _JOURNAL).read_text().splitlines(keepends=True)
            size = (self._parts / _DATA).stat().st_size
        except (OSError, UnicodeDecodeError):
            return 0
        end = 0
        kept = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line) if line.endswith("\n") else None
            except ValueError:
                record = None
            if number == 0:
                if record != self._head:
                    return 0
            elif record is None or record["end"] > size:
                break  # the last line of a run that was killed
            else:
                self._records[record["part"]] = record["blocks"]
                end = max(end, record["end"])
            kept.append(line)
        if len(kept) < len(lines):
            (self._parts / _JOURNAL).write_text("".join(kept))
        return end

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the parts that are there."""
        return frozenset(self._records)

    def put(self, number: int, rows: Interval, columns: Interval, values: Any) -> None:
        """Keep a part of the map, (rows, columns, bands), under its number."""
        blocks = []
        try:
            for low in range(rows[0] - rows[0] % PIECE, rows[1], PIECE):
                a, b = max(low, rows[0]), min(low + PIECE, rows[1])
                block = np.ascontiguousarray(values[a - rows[0] : b - rows[0]], self.dtype)
                packed = zlib.compress(block.tobytes(), _LEVEL)
                blocks.append([a, b, *columns, self._data.tell(), len(packed)])
                self._data.write(packed)
            self._data.flush()
            os.fsync(self._data.fileno())
            self._journal.write(json.dumps({"part": number, "blocks": blocks, "end": self._data.tell()}) + "\n")
            self._journal.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path}: {error.strerror}; {len(self._records)} parts are kept in {self._parts}: "
                "make room and run again to go on from them",
            ) from error
        self._records[number] = blocks

    def close(self) -> None:
        """Leave the parts as they are, for another run."""
        for file in (self._data, self._journal, self._lock):
            with contextlib.suppress(OSError):  # what was not written is not in the journal
                file.close()

    def finish(self, *, keep: bool = False) -> Path:
        """Write the file from the parts, and remove these unless they are kept.

        Places without a part are NaN, or 0 in maps of integers.
        """
        self.close()
        suffix = self.path.suffix.lower()
        try:
            if suffix == ".zarr":
                self._write_zarr()
            else:
                with replacing(self.path) as temporary:
                    (self._write_npy if suffix == ".npy" else self._write_tiff)(temporary)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path}: {error.strerror}; all parts are kept in {self._parts}: make room and run again to write "
                "the file from them",
            ) from error
        if not keep:
            shutil.rmtree(self._parts)
        return self.path

    def _bands(self) -> Iterator[tuple[int, Any]]:
        """The rows of the map, `PIECE` at a time."""
        blocks: dict[int, list[list[int]]] = {}
        for found in self._records.values():
            for block in found:
                blocks.setdefault(block[0] // PIECE, []).append(block)
        fill = np.nan if self.dtype.kind == "f" else 0
        with (self._parts / _DATA).open("rb") as data:
            for top in range(0, self.shape[0], PIECE):
                band = np.full((min(PIECE, self.shape[0] - top), *self.shape[1:]), fill, self.dtype)
                for a, b, c, d, offset, count in blocks.get(top // PIECE, ()):
                    data.seek(offset)
                    values = np.frombuffer(zlib.decompress(data.read(count)), self.dtype)
                    band[a - top : b - top, c:d] = values.reshape(b - a, d - c, -1)
                yield top, band

    def _write_npy(self, path: Path) -> None:
        shape = self.shape if self.shape[2] > 1 else self.shape[:2]
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _, band in self._bands():
                file.write(band.tobytes())

    def _write_tiff(self, path: Path) -> None:
        import tifffile

        bands = self.shape[2]

        def tiles() -> Iterator[Any]:
            for _, band in self._bands():
                for left in range(0, self.shape[1], PIECE):
                    piece = band[:, left : left + PIECE]
                    missing = [(0, PIECE - piece.shape[0]), (0, PIECE - piece.shape[1]), (0, 0)]
                    piece = np.pad(piece, missing)
                    yield piece if bands > 1 else piece[:, :, 0]

        options: dict[str, Any] = {"extratags": []}
        if self.georeference is not None:
            options["extratags"] = [(*tag, True) for tag in self.georeference.tiff_tags()]
        if self.dtype.kind == "f":
            options["extratags"].append((42113, 2, 4, "nan", True))  # GDAL's no-data value
        if self.spacing is not None:  # micrometres a pixel, as pixels a centimetre
            options |= {"resolution": tuple(1e4 / s for s in self.spacing), "resolutionunit": "CENTIMETER"}
        if bands > 1:
            options["planarconfig"] = "contig"
        shape = self.shape if bands > 1 else self.shape[:2]
        big = bool(np.prod(self.shape, dtype=np.int64) * self.dtype.itemsize > 3 << 30)
        with quiet("tifffile"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with tifffile.TiffWriter(path, bigtiff=big) as tiff:
                tiff.write(
                    tiles(),
                    shape=shape,
                    dtype=self.dtype,
                    tile=(PIECE, PIECE),
                    compression="zlib",
                    compressionargs={"level": _LEVEL},
                    photometric="minisblack",
                    metadata=None,
                    maxworkers=1,
                    **options,
                )

    def _write_zarr(self) -> None:
        zarr = _zarr()
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        chunks = (PIECE, PIECE, self.shape[2])
        fill = float("nan") if self.dtype.kind == "f" else 0
        array = zarr.create_array(
            store=str(temporary), shape=self.shape, chunks=chunks, dtype=self.dtype, fill_value=fill
        )
        if self.georeference is not None:
            array.attrs.update(self.georeference.attributes())
        if self.spacing is not None:
            array.attrs[SPACING] = list(self.spacing)
        for top, band in self._bands():
            array[top : top + len(band)] = band
        if self.path.exists():
            shutil.rmtree(self.path)
        temporary.rename(self.path)


def _zarr() -> Any:
    try:
        import zarr
    except ModuleNotFoundError:
        raise ModuleNotFoundError('out: writing .zarr needs zarr: pip install "wherever[zarr]"', name="zarr") from None
    return zarr


def salvage(path: str | Path) -> Path:
    """Write a map file from the parts that an interrupted run left; what is missing is NaN (0 in maps of integers).

    Parameters
    ----------
    path : str or Path
        The file that the run was to write: its parts are in `PATH.parts`, and are kept.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    FileNotFoundError
        If there are no parts.
    """
    path = Path(path)
    parts = path.with_name(path.name + ".parts")
    try:
        with (parts / _JOURNAL).open() as journal:
            head = json.loads(journal.readline())
        shape, dtype = head["shape"], head["dtype"]
    except (OSError, ValueError, KeyError):
        raise FileNotFoundError(f"{path}: there are no parts of an interrupted run in {parts}") from None
    found = MapFile(path, (shape[0], shape[1], shape[2]), dtype, "", resume=True, _head=head)
    return found.finish(keep=True)
