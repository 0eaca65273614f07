"""Readers of real data: tiny files in each format are read back; damaged ones are errors that name the file."""

from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np
import pytest
from scipy.io import savemat, wavfile

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("rich")

from wherever.models import data as reading  # noqa: E402
from wherever.models.data import DataError, Labelled  # noqa: E402


def archive(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(colour, size=(64, 64)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def idx(path, values):
    sizes = np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes()))


def write_digits(folder, images, labels):
    idx(folder / "mnist-10k-images-idx3-ubyte.gz", images)
    idx(folder / "mnist-10k-labels-idx1-ubyte.gz", labels)


def test_digits(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    write_digits(tmp_path, images, np.arange(10, dtype=np.uint8)[::-1])
    training, test = reading.digits(tmp_path)
    assert (training.x.shape, test.x.shape) == ((8, 1, 28, 28), (2, 1, 28, 28))
    assert training.x.dtype == torch.float32
    np.testing.assert_allclose(training.x[:, 0] * 255, images[:8], atol=1e-4)
    assert test.y.tolist() == [1, 0]


def test_cats_and_dogs_come_in_turn(tmp_path):
    kinds = {"cats": (250, 0, 0), "dogs": (0, 0, 250)}
    files = {f"{part}/{kind}/{n}.jpg": jpeg(c) for part in ("train", "test") for kind, c in kinds.items() for n in "12"}
    archive(tmp_path / "cats_dogs_64.tar", files)
    training, test = reading.cats_and_dogs(tmp_path)
    assert training.x.shape == test.x.shape == (4, 3, 64, 64)
    assert training.y.tolist() == [0, 1, 0, 1]
    assert training.classes == ("cats", "dogs")
    assert (training.x[:, 0].mean(dim=(1, 2)) > 0.9).tolist() == [True, False, True, False]


def test_blood(tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40.5</ymax></bndbox>"
    xml = f"<annotation><object><name>WBC</name>{box}</object></annotation>".encode()
    archive(tmp_path / "bccd.tar", {"bccd/a.xml": xml, "bccd/a.jpg": jpeg((0, 250, 0), (32, 48))})
    ((image, boxes),) = reading.blood(tmp_path)
    assert image.shape == (3, 48, 32)
    assert image.dtype == torch.uint8
    assert image[1].min() > 230 > 25 > image[0].max()
    assert boxes == [("WBC", (1, 2, 30, 40.5))]


def test_hyperspectral_pixels_go_down_the_columns(tmp_path):
    spectra = np.arange(5 * 2 * 3).reshape(5, 2, 3)  # bands, rows, columns
    Y = spectra.transpose(0, 2, 1).reshape(5, 6).astype(np.uint16)
    sizes = {"nRow": 2, "nCol": 3, "maxValue": 100}
    savemat(tmp_path / "jasper_ridge_198_bands.mat", {"Y": Y, "A": np.full((4, 6), 0.25), **sizes})
    bands, abundances = reading.hyperspectral(tmp_path)
    np.testing.assert_allclose(bands * 100, spectra, rtol=1e-6)
    assert abundances.shape == (4, 2, 3)


def test_spoken_digits(tmp_path):
    file = io.BytesIO()
    samples = np.array([0, 2**14, -(2**15)], np.int16)
    wavfile.write(file, 8000, samples)
    archive(tmp_path / "spoken_digits.tar", {"spoken/7_ann_3.wav": file.getvalue()})
    (spoken,) = reading.spoken_digits(tmp_path)
    assert (spoken.digit, spoken.speaker, spoken.samples.tolist()) == (7, "ann", [0, 0.5, -1])


def test_sentences(tmp_path):
    (tmp_path / "rt-polarity.pos.gz").write_bytes(gzip.compress("très bon .\nfine \n".encode("latin-1")))
    (tmp_path / "rt-polarity.neg.gz").write_bytes(gzip.compress(b"dull .\n"))
    texts, positive = reading.sentences(tmp_path)
    assert texts == ["dull .", "très bon .", "fine"]
    assert positive.tolist() == [0, 1, 1]


@pytest.mark.parametrize("reader", ["digits", "cats_and_dogs", "blood", "hyperspectral", "spoken_digits", "sentences"])
def test_what_is_missing_or_damaged_is_named(tmp_path, reader):
    read = getattr(reading, reader)
    with pytest.raises(DataError, match=r"not there; --data names the folder"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"not there; --data names the folder") as caught:
        read(tmp_path / "nowhere")
    name = str(caught.value).split(":")[0].rsplit("/", 1)[-1]
    (tmp_path / name).write_bytes(b"no such thing" * 100)
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize("reader", ["cats_and_dogs", "blood", "spoken_digits"])
def test_a_damaged_member_is_an_error(tmp_path, reader):
    names = ["train/cats/1_a_1.jpg", "1_a_1.xml", "1_a_1.wav"]
    for name in ("cats_dogs_64.tar", "bccd.tar", "spoken_digits.tar"):
        archive(tmp_path / name, dict.fromkeys(names, b"no such thing"))
    with pytest.raises(DataError, match="cannot be read"):
        getattr(reading, reader)(tmp_path)


def test_digits_that_are_cut_off_or_do_not_match(tmp_path):
    write_digits(tmp_path, np.zeros((3, 28, 28), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(DataError, match="3 digits, but 2 labels"):
        reading.digits(tmp_path)
    path = tmp_path / "mnist-10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(DataError, match="not a whole IDX file of bytes with 3 dimensions"):
        reading.digits(tmp_path)


def test_a_sample_has_its_share_of_every_class():
    every = Labelled(torch.arange(9), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2]))
    assert every.sample(6).x.tolist() == [0, 1, 5, 6, 7, 8]
    assert every.sample(3).y.tolist() == [0, 1, 2]
    assert every.sample(None) is every
    assert every.sample(99) is every
