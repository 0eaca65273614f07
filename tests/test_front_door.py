"""The front door: every public name is there, and nothing heavy is imported before it is used."""

import subprocess
import sys

import pytest

import wherever


def test_every_public_name_is_there():
    for name in wherever.__all__:
        assert getattr(wherever, name) is not None
        assert name in dir(wherever)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'convolution'"):
        _ = wherever.convolution


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import wherever", ["numpy", "scipy", "llvmlite"]),
        ("import wherever; wherever.conv", ["matplotlib", "skimage", "PIL", "torch", "typer", "scipy.signal"]),
        ("import wherever; wherever.check.equivariance", ["matplotlib", "skimage", "PIL", "torch", "typer", "rich"]),
        ("import wherever; wherever.Detector; wherever.ladder", ["matplotlib", "skimage", "PIL", "torch", "typer"]),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
