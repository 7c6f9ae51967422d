"""One report about the wrong labels of a data set: numbers, table, plot."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._scores import ArrayLike, Scores, check_number, optional_module, read_scores
from .metrics import PrecisionRecall, area_under_roc, counts_at, ranks
from .thresholds import threshold_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DetectionReport", "detect"]

_OP = "detect"


@dataclass(frozen=True)
class DetectionReport:
    """What :func:`detect` found.

    Attributes:
        name: What the score is called in table and plot.
        method: How the threshold was chosen: a method of
            :func:`~robustcore.losses.noise_detection.select_threshold`, or ``"given"``.
        threshold: In the direction and unit of the scores.
        higher_is_wrong: The direction of the scores.
        count: How many labels took part.
        excluded: How many did not: NaN scores, and rows that ``valid`` left out.
        suspects: int64, positions (in the flattened scores) of the flagged labels, the most
            suspicious first, equal scores by position.
        auc: Area under the ROC curve; None where it is unknown which labels are wrong, or where
            all or none of them are.
        average_precision: Area under the precision-recall curve; None likewise.
        quality: Precision and recall at the threshold; None where the truth is unknown.
    """

    name: str
    method: str
    threshold: float
    higher_is_wrong: bool
    count: int
    excluded: int
    suspects: Tensor
    auc: float | None
    average_precision: float | None
    quality: PrecisionRecall | None
    _scores: Scores = field(repr=False, compare=False)

    @property
    def flagged_rate(self) -> float:
        """Share of the labels that are flagged: an estimate of the noise rate."""
        return len(self.suspects) / self.count if self.count else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; not the positions of the suspects. An infinite threshold, which
        JSON does not know, is None."""
        result: dict[str, Any] = {
            "name": self.name,
            "method": self.method,
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "higher_is_wrong": self.higher_is_wrong,
            "count": self.count,
            "excluded": self.excluded,
            "flagged": len(self.suspects),
            "flagged_rate": self.flagged_rate,
        }
        if self.quality is not None:
            result |= {
                "wrong": self.quality.wrong,
                "auc": self.auc,
                "average_precision": self.average_precision,
                "precision": self.quality.precision,
                "recall": self.quality.recall,
                "f1": self.quality.f1,
            }
        return result

    def table(self) -> Table:
        """A rich table, for ``rich.print``."""
        from rich.table import Table

        sign = "≥" if self.higher_is_wrong else "≤"
        table = Table("", self.name, title="wrong labels", title_justify="left")
        table.columns[1].justify = "right"
        table.add_row("labels", f"{self.count}")
        table.add_row("left out", f"{self.excluded}")
        table.add_row(f"threshold ({self.method})", f"{sign} {self.threshold:.4g}")
        table.add_row("flagged", f"{len(self.suspects)} ({100 * self.flagged_rate:.1f} %)")
        if self.quality is not None:
            table.add_section()
            share = 100 * self.quality.wrong / self.count if self.count else 0.0
            table.add_row("wrong", f"{self.quality.wrong} ({share:.1f} %)")
            for label, value in (
                ("AUC", self.auc),
                ("average precision", self.average_precision),
                ("precision", self.quality.precision),
                ("recall", self.quality.recall),
                ("F1", self.quality.f1),
            ):
                table.add_row(label, "–" if value is None else f"{value:.3f}")
        return table

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Histogram of the scores with the threshold; with known truth also the ROC curve.

        Args:
            path: Where to; the suffix (.png, .svg, .pdf) decides the format.

        Raises:
            ModuleNotFoundError: matplotlib is not installed (extra ``analysis``).
            ValueError: The suffix is none that matplotlib writes.
            OSError: The file cannot be written.
        """
        from ._plot import draw

        return draw(self, self._scores, Path(path))


def detect(
    scores: ArrayLike,
    wrong: ArrayLike | None = None,
    *,
    threshold: float | None = None,
    method: str = "gaussian_mixture",
    rate: float | None = None,
    valid: ArrayLike | None = None,
    higher_is_wrong: bool = True,
    name: str = "score",
) -> DetectionReport:
    r"""Flags suspicious labels, and says how good that is where the truth is known.

    Args:
        scores: One score per example, any shape: a loss with ``reduction="none"``, a gate, a
            log-probability. NaN rows are left out and counted.
        wrong: bool, the shape of ``scores``: which labels are wrong, where that is known (a
            benchmark, or a checked sample with the rest left out by ``valid``).
        threshold: Labels with :math:`s \ge t` are flagged (:math:`s \le t` with
            ``higher_is_wrong=False``). None chooses it by ``method``.
        method: See :func:`~robustcore.losses.noise_detection.select_threshold`; so is ``rate``.
        valid: bool, the shape of ``scores``; rows with False are left out.
        higher_is_wrong: False for log-probabilities and confidences.
        name: What the score is called in table and plot.

    Returns:
        A :class:`DetectionReport`.

    Raises:
        TypeError: An argument has the wrong type; ``wrong`` or ``valid`` is not bool.
        ValueError: Shapes differ, no row counts, the threshold is NaN or comes with a rate, or it
            cannot be chosen (see :func:`~robustcore.losses.noise_detection.select_threshold`).
        ModuleNotFoundError: scikit-learn is not installed (extra ``analysis``).

    Example:
        >>> import torch, torch.nn.functional as F
        >>> from robustcore.losses.noise_detection import detect
        >>> logits = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.0, 3.5], [0.0, 4.5], [5.0, 0.0]])
        >>> given = torch.tensor([0, 0, 1, 0, 0])
        >>> loss = F.cross_entropy(logits, given, reduction="none")
        >>> report = detect(loss, method="otsu")
        >>> report.suspects
        tensor([3])
        >>> report = detect(loss, given != torch.tensor([0, 0, 1, 1, 0]), method="otsu")
        >>> report.auc, report.quality.precision, report.quality.recall
        (1.0, 1.0, 1.0)
    """
    if not isinstance(name, str):
        raise TypeError(f"{_OP}: name must be a str, got {type(name).__name__}")
    checked = read_scores(_OP, scores, wrong, valid, higher_is_wrong)
    if len(checked.values) == 0:
        raise ValueError(
            f"{_OP}: scores must hold at least one row that counts, got {checked.total} rows that "
            "are NaN or left out"
        )
    if threshold is None:
        cut = threshold_of(_OP, checked, method, rate)
    else:
        if rate is not None:
            raise ValueError(f"{_OP}: rate must be None where threshold is given, got {rate}")
        cut, method = checked.sign * check_number(_OP, "threshold", threshold), "given"

    flagged = np.flatnonzero(checked.values >= cut)
    order = np.argsort(-checked.values[flagged], kind="stable")
    area = precision = None
    if checked.wrong is not None and checked.wrong.any() and not checked.wrong.all():
        metrics = optional_module(_OP, "sklearn.metrics")
        area = area_under_roc(_OP, checked)
        precision = float(
            metrics.average_precision_score(checked.wrong, ranks(_OP, checked.values))
        )
    return DetectionReport(
        name=name,
        method=method,
        threshold=checked.sign * cut,
        higher_is_wrong=higher_is_wrong,
        count=len(checked.values),
        excluded=checked.excluded,
        suspects=torch.from_numpy(checked.rows[flagged[order]]),
        auc=area,
        average_precision=precision,
        quality=None if checked.wrong is None else counts_at(checked, cut),
        _scores=checked,
    )
