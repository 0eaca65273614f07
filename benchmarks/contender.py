"""Contender: one way to compute something that is measured beside others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One way to compute a case or a network.

    Attributes
    ----------
    name : str
    run : function
        What is timed.
    array : function
        The result of ``run`` as an array, in the memory order that all are compared in; as it is if left out.
    rate : float
        Multiply-adds a second, of direct summation, that it surely reaches: what would take minutes is left out.
    """

    name: str
    run: Callable[[], Any]
    array: Callable[[Any], Any] = lambda result: result
    rate: float = math.inf
