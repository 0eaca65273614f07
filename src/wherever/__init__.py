"""The front door of wherever: every public name, imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is asked for, so `import wherever` costs nothing.
_HOME = {
    "conv": "wherever.ops",
    "conv_transpose": "wherever.ops",
    "correlate": "wherever.ops",
    "convolve": "wherever.ops",
    "plan": "wherever.ops",
    "set_threads": "wherever.engine.run",
    "Detector": "wherever.find",
    "Finds": "wherever.find",
}
_MODULES = ("check", "find", "ladder", "ndimage", "signal", "tiles")

__all__ = [
    "Detector",
    "Finds",
    "check",
    "conv",
    "conv_transpose",
    "convolve",
    "correlate",
    "find",
    "ladder",
    "ndimage",
    "plan",
    "set_threads",
    "signal",
    "tiles",
]

if TYPE_CHECKING:
    from wherever import check, find, ladder, ndimage, signal, tiles
    from wherever.engine.run import set_threads
    from wherever.find import Detector, Finds
    from wherever.ops import conv, conv_transpose, convolve, correlate, plan


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"wherever.{name}")
    else:
        raise AttributeError(f"module 'wherever' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
