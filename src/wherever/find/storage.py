"""Detectors in files: one npz of plain arrays and JSON, versioned, without pickle."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wherever.files.outputs import write_atomically
from wherever.find.calibration import Calibration
from wherever.find.features import Eye, Floats
from wherever.find.sweep import Kernel, Template

FORMAT, VERSION = "wherever detector", 1


@dataclass(frozen=True)
class Learnt:
    """All that a detector learns from its examples.

    Attributes
    ----------
    kernel, calibration
        How pictures are scored, and what probability a score stands for.
    channels
        Number of channels of the images.
    threshold
        The probability from which on a place is a find.
    """

    kernel: Kernel
    calibration: Calibration
    channels: int
    threshold: float


def save_file(path: str | os.PathLike[str], parameters: dict[str, Any], learnt: Learnt) -> None:
    """Write a detector's parameters and what it learnt; the file appears complete or not at all."""
    kernel = learnt.kernel
    description = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": parameters,
        "channels": learnt.channels,
        "template": asdict(kernel.template),
        "sigma": kernel.eye.sigma,
        "tone": kernel.eye.tone,
        "bias": kernel.bias,
        "levels": kernel.levels,
        "penalties": kernel.penalties,
        "angles": kernel.angles,
        "calibration": asdict(learnt.calibration),
        "threshold": learnt.threshold,
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    np.savez(buffer, description=text, weights=kernel.weights, mix=kernel.eye.mix)
    write_atomically(Path(path), buffer.getvalue())


def load_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Learnt]:
    """Read a detector's parameters and what it learnt; ValueError says what is wrong with the file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            description = json.loads(bytes(file["description"]))
            weights, mix = file["weights"].astype(np.float32), file["mix"].astype(np.float32)
        if description["format"] != FORMAT:
            raise ValueError("it holds something else")
        version = description["version"]
        if version == VERSION:
            return _restored(description, weights, mix)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = "" if isinstance(error, (zipfile.BadZipFile, EOFError)) or "pickle" in str(error) else f" ({error})"
        raise ValueError(
            f"{os.fspath(path)} is not a detector file, or it is damaged{why}; give a file that a detector was saved to"
        ) from error
    raise ValueError(
        f"{os.fspath(path)} was written in version {version} of the detector format; this program reads version "
        f"{VERSION}; update wherever, or save the detector again"
    )


def _restored(description: dict[str, Any], weights: Floats, mix: Floats) -> tuple[dict[str, Any], Learnt]:
    parameters = dict(description["parameters"])
    parameters["scales"] = None if parameters["scales"] is None else tuple(parameters["scales"])
    template, eye = Template(**description["template"]), Eye(mix, description["sigma"], description["tone"])
    if weights.shape != (eye.maps, template.rows, template.columns) or mix.shape[1] != description["channels"]:
        raise ValueError(f"its arrays, {weights.shape} and {mix.shape}, do not fit its description")
    kernel = Kernel(
        template,
        eye,
        weights,
        float(description["bias"]),
        tuple(description["levels"]),
        tuple(description["penalties"]),
        tuple(description["angles"]),
    )
    calibration = Calibration(**description["calibration"])
    return parameters, Learnt(kernel, calibration, int(description["channels"]), float(description["threshold"]))
