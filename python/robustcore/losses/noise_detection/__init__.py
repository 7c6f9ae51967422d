r"""Finding wrong labels from one score per example.

A score says how little a model believes a label: the value of any loss of
:mod:`robustcore.losses` with ``reduction="none"``, a log-probability, a gate. By convention
**higher means more likely wrong**, which holds for losses and gates as they are;
``higher_is_wrong=False`` turns the direction around, for log-probabilities and confidences.

======================== =========================================================================
:func:`detect`           the whole analysis: a :class:`DetectionReport` with table, plot and numbers
:func:`select_threshold` where to cut, without knowing which labels are wrong
:func:`auc`              how well the scores rank wrong labels above right ones, where it is known
:func:`precision_recall` what a cut finds and what it flags by mistake, where it is known
======================== =========================================================================

Scores are tensors on any device, NumPy arrays or sequences of numbers, of any shape; everything is
computed in float64 on the CPU. NaN scores are what the operators give rows with ``ignore_index``
where they have no score; such rows are left out and counted, never flagged. (A *loss* of an
ignored row is 0, not NaN: leave those rows out with ``valid``.) Infinite scores are kept: a label
that the model gave probability 0 is as wrong as can be.

Needs scikit-learn, for :meth:`DetectionReport.plot` also matplotlib:
install the extra ``analysis``.
"""

from .metrics import PrecisionRecall, auc, precision_recall
from .report import DetectionReport, detect
from .thresholds import THRESHOLD_METHODS, select_threshold

__all__ = [
    "THRESHOLD_METHODS",
    "DetectionReport",
    "PrecisionRecall",
    "auc",
    "detect",
    "precision_recall",
    "select_threshold",
]
