"""Finding a thing wherever it is: the detector, what it finds, and how good that is; templates."""

from wherever.find.detector import Detector
from wherever.find.evaluate import Evaluation, average_precision
from wherever.find.finds import Finds
from wherever.find.template import match_template

__all__ = ["Detector", "Evaluation", "Finds", "average_precision", "match_template"]
