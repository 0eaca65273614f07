"""The algorithms, one a file, all with the same protocol."""

from wherever.engine.algorithms.depthwise import Depthwise
from wherever.engine.algorithms.depthwise_gradient import DepthwiseGradient
from wherever.engine.algorithms.direct import Direct
from wherever.engine.algorithms.exact import ExactIntegers
from wherever.engine.algorithms.filter import Filter
from wherever.engine.algorithms.fourier import Fourier
from wherever.engine.algorithms.fourier_channels import FourierChannels
from wherever.engine.algorithms.fourier_lines import FourierLines
from wherever.engine.algorithms.grouped import Grouped
from wherever.engine.algorithms.im2col import Im2col
from wherever.engine.algorithms.karatsuba import Karatsuba
from wherever.engine.algorithms.overlap_save import OverlapSave
from wherever.engine.algorithms.panels import Panels
from wherever.engine.algorithms.phases import Phases
from wherever.engine.algorithms.places import Places
from wherever.engine.algorithms.protocol import Algorithm, Prepared
from wherever.engine.algorithms.separable import Separable
from wherever.engine.algorithms.taps import Taps
from wherever.engine.algorithms.trimmed import Trimmed
from wherever.engine.algorithms.weight_gradient import Outer
from wherever.engine.algorithms.winograd import Winograd, WinogradOnce
from wherever.engine.algorithms.winograd_gradient import WinogradGradient

_DIRECT: tuple[Algorithm, ...] = (Direct(), Grouped(), Panels(), Places(), Filter(), Depthwise(), Im2col())

_PHASES, _PHASES_DIRECTLY = Phases("phases", (*_DIRECT, Winograd())), Phases("phases_directly", _DIRECT)
_SUMS: tuple[Algorithm, ...] = (*_DIRECT, _PHASES_DIRECTLY, Outer(), DepthwiseGradient())

ALGORITHMS: tuple[Algorithm, ...] = (
    Direct(),
    Grouped(),
    Panels(),
    Places(),
    Winograd(),
    WinogradOnce(),
    Filter(),
    Karatsuba(),
    Depthwise(),
    Fourier(),
    FourierChannels(),
    FourierLines(),
    _PHASES,
    _PHASES_DIRECTLY,
    Outer(),
    WinogradGradient(),
    DepthwiseGradient(),
    Trimmed("trimmed", (*_SUMS, Winograd(), _PHASES, WinogradGradient())),
    Trimmed("trimmed_directly", _SUMS),
    Separable(),
    Im2col(),
    Taps(),
    OverlapSave(),
    ExactIntegers(),
)

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Depthwise",
    "DepthwiseGradient",
    "Direct",
    "ExactIntegers",
    "Filter",
    "Fourier",
    "FourierChannels",
    "FourierLines",
    "Grouped",
    "Im2col",
    "Karatsuba",
    "Outer",
    "OverlapSave",
    "Panels",
    "Phases",
    "Places",
    "Prepared",
    "Separable",
    "Taps",
    "Trimmed",
    "Winograd",
    "WinogradGradient",
    "WinogradOnce",
]
