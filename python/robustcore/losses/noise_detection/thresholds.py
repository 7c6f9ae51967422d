"""Where to cut between right and wrong labels, from the scores alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..._checks import check_choice
from ._scores import ArrayLike, Scores, check_number, optional_module, read_scores

__all__ = ["THRESHOLD_METHODS", "select_threshold", "threshold_of"]

_OP = "select_threshold"


def select_threshold(
    scores: ArrayLike,
    method: str = "gaussian_mixture",
    *,
    rate: float | None = None,
    valid: ArrayLike | None = None,
    higher_is_wrong: bool = True,
) -> float:
    r"""A threshold on the scores that separates wrong from right labels, no clean label needed.

    A label counts as wrong where its score :math:`s \ge t` (with ``higher_is_wrong=False`` where
    :math:`s \le t`).

    - ``"gaussian_mixture"``: two normal distributions are fitted to the scores (EM, from a fixed
      start), as DivideMix and its relatives do with the loss. :math:`t` is the point between the
      two means from which the upper component is the more probable one: :math:`\pi_1 N(t; \mu_1,
      \sigma_1^2) = \pi_0 N(t; \mu_0, \sigma_0^2)`. (Cutting between the means, instead of by
      posterior, never flags the *lowest* scores, which a wide upper component claims for itself.)
      Where the upper component wins at the lower mean already, :math:`t` is that mean; where it
      loses even at its own, :math:`t` is its own.
    - ``"otsu"``: the cut with the largest variance between the two sides, :math:`w_0 w_1 (\mu_1 -
      \mu_0)^2`, found exactly over all cuts. :math:`t` is the middle of the gap it falls into.
    - ``"rate"``: the share ``rate`` of the rows with the highest scores, where the noise rate is
      known or chosen, rounded to whole rows. Rows tied with the last of them are flagged too.

    Args:
        scores: One score per example, any shape; NaN rows are left out.
        method: ``"gaussian_mixture"``, ``"otsu"`` or ``"rate"``.
        rate: Share of wrong labels in [0, 1]; required by ``"rate"``, refused by the others.
        valid: bool, the shape of ``scores``; rows with False are left out.
        higher_is_wrong: False for log-probabilities and confidences.

    Returns:
        The threshold in the direction and unit of ``scores``. With ``rate=0`` infinite, on the
        side where nothing is flagged.

    Raises:
        TypeError: An argument has the wrong type; ``valid`` is not bool.
        ValueError: Shapes differ, ``method`` is unknown, ``rate`` is missing, out of range or not
            wanted, or there are fewer than two different finite scores to divide.
        ModuleNotFoundError: ``"gaussian_mixture"`` without scikit-learn (extra ``analysis``).

    Numerics: float64. Infinite scores take no part in the fit of ``"gaussian_mixture"`` and
    ``"otsu"``. The same scores give the same threshold; scaling and shifting the scores scales and
    shifts it.

    Cost: O(N) per EM step, else O(N log N).

    Source: Li et al., DivideMix, arXiv 2002.07394 (mixture of losses); Otsu, A Threshold Selection
    Method from Gray-Level Histograms, 1979.

    Example:
        >>> from robustcore.losses.noise_detection import select_threshold
        >>> loss = [0.1, 0.2, 0.1, 0.3, 2.9, 3.1]
        >>> round(select_threshold(loss, "otsu"), 3)
        1.6
        >>> select_threshold(loss, "rate", rate=1 / 3)
        2.9
    """
    checked = read_scores(_OP, scores, None, valid, higher_is_wrong)
    return checked.sign * threshold_of(_OP, checked, method, rate)


def threshold_of(op: str, scores: Scores, method: str, rate: float | None) -> float:
    """The threshold for scores whose high values mean wrong."""
    if not isinstance(method, str):
        raise TypeError(f"{op}: method must be a str, got {type(method).__name__}")
    check_choice(op, "method", method, THRESHOLD_METHODS)
    if method == "rate":
        if rate is None:
            raise ValueError(f"{op}: rate must be given for method 'rate', got None")
        rate = check_number(op, "rate", rate)
        if not 0 <= rate <= 1:
            raise ValueError(f"{op}: rate must be in [0, 1], got {rate}")
        return _highest(op, scores.values, rate)
    if rate is not None:
        raise ValueError(f"{op}: rate must be None for method {method!r}, got {rate}")
    finite = scores.values[np.isfinite(scores.values)]
    if len(finite) == 0 or finite.min() == finite.max():
        raise ValueError(
            f"{op}: scores must hold at least two different finite values for method {method!r}, "
            f"got {len(finite)} finite values with no difference"
        )
    # In a unit, a power of two and so without rounding, in which no square leaves the range.
    exponent = int(np.frexp(np.abs(finite).max())[1])
    return math.ldexp(_FITTED[method](op, np.ldexp(finite, -exponent)), exponent)


def _highest(op: str, values: np.ndarray, rate: float) -> float:
    if len(values) == 0:
        raise ValueError(f"{op}: scores must hold at least one row that counts, got none")
    flagged = round(rate * len(values))
    if flagged == 0:
        return math.inf
    return float(np.partition(values, len(values) - flagged)[len(values) - flagged])


def _otsu(op: str, values: np.ndarray) -> float:
    ordered = np.sort(values)
    # A common shift changes nothing in the formula and keeps the sums small.
    sums = np.cumsum(ordered - ordered.mean())
    below = np.arange(1, len(ordered))
    # w0 w1 (μ1 − μ0)², up to a constant factor, for centred values.
    between = sums[:-1] ** 2 / (below * (len(ordered) - below))
    # Between equal scores there is no cut.
    between[ordered[1:] == ordered[:-1]] = -1.0
    cut = int(between.argmax())
    return _middle(ordered[cut], ordered[cut + 1])


def _middle(low: float, high: float) -> float:
    """Above ``low`` and not above ``high``, however close they are."""
    middle = low + (high - low) / 2
    return float(middle if low < middle else high)


def _gaussian_mixture(op: str, values: np.ndarray) -> float:
    mixture_module = optional_module(op, "sklearn.mixture")
    optimize = optional_module(op, "scipy.optimize")
    # Unit variance, because the fit's regularisation is absolute.
    centre, scale = values.mean(), values.std()
    mixture = mixture_module.GaussianMixture(2, random_state=0, max_iter=500)
    mixture.fit(((values - centre) / scale)[:, None])
    order = np.argsort(mixture.means_[:, 0])
    means = mixture.means_[order, 0]
    deviations = np.sqrt(mixture.covariances_[order, 0, 0])
    weights = mixture.weights_[order]

    def advantage_of_upper(x: float) -> float:
        densities = np.log(weights / deviations) - 0.5 * ((x - means) / deviations) ** 2
        return float(densities[1] - densities[0])

    low, high = float(means[0]), float(means[1])
    if advantage_of_upper(low) >= 0:
        cut = low
    elif advantage_of_upper(high) <= 0:
        cut = high
    else:
        cut = optimize.brentq(advantage_of_upper, low, high)
    return float(centre + scale * cut)


_FITTED: dict[str, Callable[[str, np.ndarray], float]] = {
    "gaussian_mixture": _gaussian_mixture,
    "otsu": _otsu,
}
THRESHOLD_METHODS: tuple[str, ...] = (*_FITTED, "rate")
"""What ``method`` can be."""
