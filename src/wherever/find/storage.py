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
from wherever.find.network import Network
from wherever.find.sweep import Kernel, Scorer, Template

FORMAT, VERSION = "wherever detector", 2


@dataclass(frozen=True)
class Learnt:
    """All that a detector learns from its examples.

    Attributes
    ----------
    scorer, calibration
        How pictures are scored, and what probability a score stands for.
    channels
        Number of channels of the images.
    threshold
        The probability from which on a place is a find.
    label
        The name of the thing.
    """

    scorer: Scorer
    calibration: Calibration
    channels: int
    threshold: float
    label: str | None = None


def save_file(path: str | os.PathLike[str], parameters: dict[str, Any], learnt: Learnt) -> None:
    """Write a detector's parameters and what it learnt; the file appears complete or not at all."""
    scorer = learnt.scorer
    description = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": parameters,
        "channels": learnt.channels,
        "template": asdict(scorer.template),
        "sigma": scorer.eye.sigma,
        "tone": scorer.eye.tone,
        "networks": scorer.strides if isinstance(scorer, Network) else None,
        "levels": scorer.levels,
        "penalties": scorer.penalties,
        "angles": scorer.angles,
        "calibration": asdict(learnt.calibration),
        "threshold": learnt.threshold,
        "label": learnt.label,
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, description=text, mix=scorer.eye.mix, **scorer.arrays())
    write_atomically(Path(path), buffer.getvalue())


def load_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Learnt]:
    """Read a detector's parameters and what it learnt; ValueError says what is wrong with the file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            description = json.loads(bytes(file["description"]))
            arrays = {name: file[name].astype(np.float32) for name in file.files if name != "description"}
        if description["format"] != FORMAT:
            raise ValueError("it holds something else")
        version = description["version"]
        if version == 1:
            arrays["bias"] = np.array([description["bias"]], np.float32)
        if version in (1, VERSION):
            return _restored(description, arrays)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = "" if isinstance(error, (zipfile.BadZipFile, EOFError)) or "pickle" in str(error) else f" ({error})"
        raise ValueError(
            f"{os.fspath(path)} is not a detector file, or it is damaged{why}; give a file that a detector was saved to"
        ) from error
    raise ValueError(
        f"{os.fspath(path)} was written in version {version} of the detector format; this program reads version "
        f"{VERSION}; update wherever, or save the detector again"
    )


def _restored(description: dict[str, Any], arrays: dict[str, Floats]) -> tuple[dict[str, Any], Learnt]:
    parameters = dict(description["parameters"])
    parameters["scales"] = None if parameters["scales"] is None else tuple(parameters["scales"])
    template, mix = Template(**description["template"]), arrays["mix"]
    eye = Eye(mix, description["sigma"], description["tone"])
    if mix.shape[1] != description["channels"]:
        raise ValueError(f"its mix of channels, {mix.shape}, does not fit its description")
    levels, penalties, angles = (tuple(description[name]) for name in ("levels", "penalties", "angles"))
    scorer: Scorer
    if description.get("networks") is None:
        weights = arrays["weights"]
        if weights.shape != (eye.maps, template.rows, template.columns):
            raise ValueError(f"its weights, {weights.shape}, do not fit its description")
        scorer = Kernel(template, eye, weights, float(arrays["bias"][0]), levels, penalties, angles)
    else:
        empty = Network(template, eye, (), levels, penalties, angles)
        scorer = empty.holding(arrays, description["networks"])
    calibration = Calibration(**description["calibration"])
    channels, threshold = int(description["channels"]), float(description["threshold"])
    return parameters, Learnt(scorer, calibration, channels, threshold, description.get("label"))
