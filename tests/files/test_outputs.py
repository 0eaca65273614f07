"""Results are written whole or not at all, and the texts are what other programs expect."""

from __future__ import annotations

import csv
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from wherever.files.outputs import (
    OutputFolder,
    replacing,
    to_coco_text,
    to_csv_text,
    to_geojson_text,
    write_atomically,
)

BOXES = np.array([[1.0, 2.0, 11.0, 22.0], [0.25, 3.0, 4.0, 5.5]])
SCORES = np.array([0.9, 0.1 + 0.2])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_csv() -> None:
    text = to_csv_text(BOXES, SCORES, scale=[1, 0.5], angle=[0, 90], image='a,"b".png', label="cell")
    rows = list(csv.DictReader(text.splitlines()))
    assert text.splitlines()[0] == "image,label,x0,y0,x1,y1,score,scale,angle"
    assert rows[0]["image"] == 'a,"b".png'
    assert [float(rows[1][name]) for name in ("x0", "y0", "x1", "y1")] == BOXES[1].tolist()
    assert float(rows[1]["score"]) == SCORES[1]
    assert (rows[1]["scale"], rows[1]["angle"], rows[0]["x0"]) == ("0.5", "90", "1")
    assert to_csv_text(BOXES, SCORES, header=False) == "\n".join(to_csv_text(BOXES, SCORES).splitlines()[1:]) + "\n"
    assert to_csv_text([], []).count("\n") == 1


def test_geojson() -> None:
    content = json.loads(to_geojson_text(BOXES, SCORES, image="a.png", label="Zelle ä"))
    assert content["type"] == "FeatureCollection"
    feature = content["features"][0]
    assert feature["properties"] == {"score": 0.9, "scale": 1.0, "angle": 0.0, "label": "Zelle ä", "image": "a.png"}
    ring = feature["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] == [1, 2]
    assert sorted(map(tuple, ring[:4])) == [(1, 2), (1, 22), (11, 2), (11, 22)]
    assert json.loads(to_geojson_text([], [])) == {"type": "FeatureCollection", "features": []}


def test_coco() -> None:
    content = json.loads(to_coco_text(BOXES, SCORES, image="a.png", image_size=(640, 480)))
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 640, "height": 480}]
    assert content["annotations"][1]["bbox"] == [0.25, 3, 3.75, 2.5]
    assert content["annotations"][1]["area"] == 3.75 * 2.5
    assert {item["category_id"] for item in content["annotations"]} == {item["id"] for item in content["categories"]}


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="scale must have one value for each of the 2 boxes"):
        to_csv_text(BOXES, SCORES, scale=[1])


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    write_atomically(path, "new ä\r\n")
    assert path.read_bytes() == "new ä\r\n".encode()
    write_atomically(path, b"\0\xff")
    assert contents(tmp_path) == {"a.txt": b"\0\xff"}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert contents(tmp_path) == {"a.txt": b"old"}
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a", "x")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_atomically(tmp_path, "x")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_holds_and_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("other threads would see it"))
            write_atomically(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def replace_and_fail(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for there in (False, True):
        before = contents(tmp_path)
        for error in (KeyboardInterrupt, ValueError, SystemExit):
            with pytest.raises(error):
                replace_and_fail(path, error)
            assert contents(tmp_path) == before
        with replacing(path) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.read_bytes() == b""
            assert {name: data for name, data in contents(tmp_path).items() if name != temporary.name} == before
            write_atomically(temporary, f"new {there}")  # a writer that is itself careful, such as Detector.save
        assert contents(tmp_path) == {"a.txt": f"new {there}".encode()}


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_appears_when_all_is_done(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "out" / "deep"
    if there:
        target.mkdir(parents=True)
        (target / "kept").write_text("kept")
        (target / "a").write_text("old")
    before = contents(tmp_path)
    with OutputFolder(target) as folder:
        folder.write("a", "new")
        folder.write("sub/b", b"b")
        folder.write("sub/b", b"c")
        assert {name: data for name, data in contents(tmp_path).items() if ".wherever-" not in name} == before
        assert folder.names == ["a", "sub/b"]
    assert contents(target) == {"a": b"new", "sub/b": b"c"} | ({"kept": b"kept"} if there else {})
    assert not [path for path in tmp_path.rglob("*") if ".wherever-" in path.name]


def write_and_fail(target: Path, error: type[BaseException]) -> None:
    with OutputFolder(target) as folder:
        folder.write("a", "new")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_folder_is_untouched_by_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    for target in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(error):
            write_and_fail(target, error)
    assert contents(tmp_path) == {"out/a": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_into_which_nothing_is_written_is_not_made(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_known_on_entering(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(NotADirectoryError, match="is a file, not a folder"), OutputFolder(target):
            pytest.fail("entered")
    if Path("/proc/self").exists():
        with pytest.raises(OSError, match="cannot write to /proc/self/out"), OutputFolder("/proc/self/out"):
            pytest.fail("entered")
    (tmp_path / "finds.csv").mkdir()
    with OutputFolder(tmp_path) as folder, pytest.raises(IsADirectoryError, match="it is a folder"):
        folder.write("finds.csv", "x")


def test_writing_needs_entering(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="entered"):
        OutputFolder(tmp_path).write("a", "x")
