"""Detectors in files: one npz of plain arrays and JSON, versioned, without pickle."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from wherever.files.outputs import write_atomically
from wherever.find.calibration import Calibration
from wherever.find.features import Eye, Floats
from wherever.find.sweep import Kernel, Template

if TYPE_CHECKING:
    from wherever.find.detector import Detector

    D = TypeVar("D", bound=Detector)

FORMAT, VERSION = "wherever detector", 1


def save(detector: Detector, path: str | os.PathLike[str]) -> None:
    """Write a fitted detector; the file appears complete or not at all."""
    kernel = detector.kernel_
    description = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": detector.get_params(),
        "channels": detector.channels_,
        "template": asdict(kernel.template),
        "sigma": kernel.eye.sigma,
        "tone": kernel.eye.tone,
        "bias": kernel.bias,
        "levels": kernel.levels,
        "penalties": kernel.penalties,
        "angles": kernel.angles,
        "calibration": asdict(detector.calibration_),
        "threshold": detector.threshold_,
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    np.savez(buffer, description=text, weights=kernel.weights, mix=kernel.eye.mix)
    write_atomically(Path(path), buffer.getvalue())


def load(cls: type[D], path: str | os.PathLike[str]) -> D:
    """Read a detector; ValueError says what is wrong with the file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            description = json.loads(bytes(file["description"]))
            weights, mix = file["weights"].astype(np.float32), file["mix"].astype(np.float32)
        if description["format"] != FORMAT:
            raise ValueError("it holds something else")
        version = description["version"]
        if version == VERSION:
            return _restored(cls, description, weights, mix)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)} is not a detector file, or it is damaged: {error}") from error
    raise ValueError(
        f"{os.fspath(path)} was written in version {version} of the detector format; this program reads version "
        f"{VERSION}; update wherever, or save the detector again"
    )


def _restored(cls: type[D], description: dict[str, Any], weights: Floats, mix: Floats) -> D:
    parameters = description["parameters"]
    parameters["scales"] = None if parameters["scales"] is None else tuple(parameters["scales"])
    detector = cls(**parameters)
    template, eye = Template(**description["template"]), Eye(mix, description["sigma"], description["tone"])
    if weights.shape != (eye.maps, template.rows, template.columns) or mix.shape[1] != description["channels"]:
        raise ValueError(f"its arrays, {weights.shape} and {mix.shape}, do not fit its description")
    detector.kernel_ = Kernel(
        template,
        eye,
        weights,
        float(description["bias"]),
        tuple(description["levels"]),
        tuple(description["penalties"]),
        tuple(description["angles"]),
    )
    detector.size_ = (template.width, template.height)
    detector.channels_ = int(description["channels"])
    detector.calibration_ = Calibration(**description["calibration"])
    detector.calibrated_, detector.threshold_ = detector.calibration_.calibrated, float(description["threshold"])
    return detector
