"""How good scores are, where it is known which labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._scores import ArrayLike, Scores, check_number, optional_module, read_scores

__all__ = ["PrecisionRecall", "area_under_roc", "auc", "counts_at", "precision_recall", "ranks"]


@dataclass(frozen=True)
class PrecisionRecall:
    """What a threshold finds.

    Attributes:
        precision: Share of the flagged labels that are wrong; None where nothing is flagged.
        recall: Share of the wrong labels that are flagged; None where no label is wrong.
        f1: Harmonic mean of the two; None where one is missing, 0 where both are 0.
        flagged: How many labels are flagged.
        found: How many of those are wrong.
        wrong: How many labels are wrong.
        count: How many labels took part.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    flagged: int
    found: int
    wrong: int
    count: int


def auc(
    scores: ArrayLike,
    wrong: ArrayLike,
    *,
    valid: ArrayLike | None = None,
    higher_is_wrong: bool = True,
) -> float:
    r"""Area under the ROC curve: how well the scores rank wrong labels above right ones.

    The probability that a wrong label has a higher score than a right one, ties counted half:
    1 is a perfect ranking, 0.5 none.

    Args:
        scores: One score per example, any shape; NaN rows are left out.
        wrong: bool, the shape of ``scores``: which labels are wrong.
        valid: bool, the shape of ``scores``; rows with False are left out.
        higher_is_wrong: False for log-probabilities and confidences.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes differ, or right or wrong labels are missing among the rows that count.
        ModuleNotFoundError: scikit-learn is not installed (extra ``analysis``).

    Numerics: of ranks, so infinite scores are in order. Cost: O(N log N).

    Example:
        >>> import torch
        >>> from robustcore.losses.noise_detection import auc
        >>> wrong = torch.tensor([False, True, False, True])
        >>> auc(torch.tensor([0.1, 0.2, 0.3, 0.9]), wrong)
        0.75
        >>> auc(torch.tensor([-0.1, -2.0, -0.3, float("nan")]), wrong, higher_is_wrong=False)
        1.0
    """
    checked = read_scores("auc", scores, wrong, valid, higher_is_wrong)
    truth = _truth(checked)
    if truth.all() or not truth.any():
        raise ValueError(
            "auc: wrong must hold right and wrong labels among the rows that count, got "
            f"{int(truth.sum())} wrong of {len(truth)}"
        )
    return area_under_roc("auc", checked)


def precision_recall(
    scores: ArrayLike,
    wrong: ArrayLike,
    threshold: float,
    *,
    valid: ArrayLike | None = None,
    higher_is_wrong: bool = True,
) -> PrecisionRecall:
    r"""Precision and recall of "the label is wrong where :math:`s \ge t`".

    Args:
        scores: One score per example, any shape; NaN rows are left out.
        wrong: bool, the shape of ``scores``: which labels are wrong.
        threshold: :math:`t`, in the direction and unit of ``scores``; with
            ``higher_is_wrong=False`` labels with :math:`s \le t` are flagged.
        valid: bool, the shape of ``scores``; rows with False are left out.
        higher_is_wrong: False for log-probabilities and confidences.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes differ or the threshold is NaN.

    Example:
        >>> import torch
        >>> from robustcore.losses.noise_detection import precision_recall
        >>> wrong = torch.tensor([False, True, False, True])
        >>> found = precision_recall(torch.tensor([0.1, 0.2, 0.3, 0.9]), wrong, 0.3)
        >>> found.precision, found.recall, found.flagged
        (0.5, 0.5, 2)
    """
    threshold = check_number("precision_recall", "threshold", threshold)
    checked = read_scores("precision_recall", scores, wrong, valid, higher_is_wrong)
    return counts_at(checked, checked.sign * threshold)


def _truth(scores: Scores) -> np.ndarray:
    assert scores.wrong is not None
    return scores.wrong


def ranks(op: str, values: np.ndarray) -> np.ndarray:
    """Finite stand-ins of the same order, with the same ties."""
    return optional_module(op, "scipy.stats").rankdata(values)


def area_under_roc(op: str, scores: Scores) -> float:
    metrics = optional_module(op, "sklearn.metrics")
    return float(metrics.roc_auc_score(_truth(scores), ranks(op, scores.values)))


def counts_at(scores: Scores, threshold: float) -> PrecisionRecall:
    truth = _truth(scores)
    chosen = scores.values >= threshold
    flagged, found, wrong = int(chosen.sum()), int((chosen & truth).sum()), int(truth.sum())
    precision = found / flagged if flagged else None
    recall = found / wrong if wrong else None
    f1 = None
    if precision is not None and recall is not None:
        f1 = 2 * found / (flagged + wrong)
    return PrecisionRecall(precision, recall, f1, flagged, found, wrong, len(truth))
