"""Real pictures with marked things, where there are some."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def blood(data: Path) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Return the first 14 blood smears with their boxes by kind."""
    from xml.etree import ElementTree

    from PIL import Image

    cells: list[tuple[np.ndarray, dict[str, Any]]] = []
    with tarfile.open(data / "bccd.tar") as tar:
        names = sorted(n for n in tar.getnames() if n.endswith(".jpg"))[:14]
        for name in names:
            picture = tar.extractfile(name)
            truth = tar.extractfile(name.removesuffix(".jpg") + ".xml")
            assert picture is not None
            assert truth is not None
            boxes: dict[str, Any] = {"RBC": [], "WBC": [], "Platelets": []}
            for thing in ElementTree.parse(truth).findall("object"):
                corners = [float(thing.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")]
                if corners[2] - corners[0] >= 3 and corners[3] - corners[1] >= 3:
                    boxes[thing.findtext("name", "")].append(corners)
            image = np.asarray(Image.open(io.BytesIO(picture.read())).convert("RGB"))
            cells.append((image, {kind: np.array(b).reshape(-1, 4) for kind, b in boxes.items()}))
    return cells
