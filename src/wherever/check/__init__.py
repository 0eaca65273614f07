"""Whether translation invariance and locality are true of your images and of your model: measured, and said in words.

================  =====================================================================================
`equivariance`    how far model(shift(x)) is from shift(model(x)), by layer and shift; what breaks it
`stationarity`    whether statistics of patches depend on their position by more than chance
`locality`        correlation by distance, and how large a window is worth looking at
`sharing`         one kernel for all places, coordinates, or kernels of their own: which the data support
================  =====================================================================================

Each gives a result that prints as a table and a sentence, can be plotted, and turns into plain Python types.
How much of trained weights is translation invariant and local is a question for `wherever.ladder.shares`.
"""

from wherever.check.equivariance import equivariance
from wherever.check.layers import Equivariance, Layer
from wherever.check.locality import Locality, locality
from wherever.check.sharing import Fit, Sharing, sharing
from wherever.check.stationarity import Dependence, Stationarity, stationarity

__all__ = [
    "Dependence",
    "Equivariance",
    "Fit",
    "Layer",
    "Locality",
    "Sharing",
    "Stationarity",
    "equivariance",
    "locality",
    "sharing",
    "stationarity",
]
