"""Noise detection: what wrong arguments and missing packages are answered with."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from robustcore.losses.noise_detection import auc, detect, precision_recall, select_threshold

pytest.importorskip("sklearn", reason="noise detection needs scikit-learn")

GOOD = [0.1, 0.2, 3.0]
TRUTH = [False, False, True]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: detect(["a"]), TypeError, "detect: scores must be real numbers, got dtype <U1"),
        (
            lambda: detect(torch.zeros(2, dtype=torch.complex64)),
            TypeError,
            "detect: scores must be real numbers, got dtype complex64",
        ),
        (
            lambda: detect(GOOD, [0, 0, 1]),
            TypeError,
            "detect: wrong must be of dtype bool, got int64",
        ),
        (
            lambda: auc(GOOD, TRUTH[:2]),
            ValueError,
            "auc: wrong must have the shape of scores (3,), got (2,)",
        ),
        (
            lambda: detect(GOOD, TRUTH, valid=[[True, True, True]]),
            ValueError,
            "detect: valid must have the shape of scores (3,), got (1, 3)",
        ),
        (
            lambda: detect([]),
            ValueError,
            "detect: scores must hold at least one row that counts, got 0 rows that are NaN or "
            "left out",
        ),
        (
            lambda: detect([math.nan, math.nan]),
            ValueError,
            "detect: scores must hold at least one row that counts, got 2 rows that are NaN or "
            "left out",
        ),
        (
            lambda: detect([1.0, 1.0, math.inf]),
            ValueError,
            "detect: scores must hold at least two different finite values for method "
            "'gaussian_mixture', got 2 finite values with no difference",
        ),
        (
            lambda: select_threshold(GOOD, "median"),
            ValueError,
            "select_threshold: method must be one of 'gaussian_mixture', 'otsu', 'rate', got "
            "'median'",
        ),
        (
            lambda: select_threshold(GOOD, 3),
            TypeError,
            "select_threshold: method must be a str, got int",
        ),
        (
            lambda: select_threshold(GOOD, "rate"),
            ValueError,
            "select_threshold: rate must be given for method 'rate', got None",
        ),
        (
            lambda: select_threshold(GOOD, "rate", rate=40),
            ValueError,
            "select_threshold: rate must be in [0, 1], got 40.0",
        ),
        (
            lambda: select_threshold(GOOD, "otsu", rate=0.4),
            ValueError,
            "select_threshold: rate must be None for method 'otsu', got 0.4",
        ),
        (
            lambda: detect(GOOD, threshold=1.0, rate=0.4),
            ValueError,
            "detect: rate must be None where threshold is given, got 0.4",
        ),
        (
            lambda: precision_recall(GOOD, TRUTH, math.nan),
            ValueError,
            "precision_recall: threshold must not be NaN",
        ),
        (
            lambda: precision_recall(GOOD, TRUTH, "high"),
            TypeError,
            "precision_recall: threshold must be a number, got str",
        ),
        (
            lambda: auc(GOOD, [True] * 3),
            ValueError,
            "auc: wrong must hold right and wrong labels among the rows that count, got 3 wrong "
            "of 3",
        ),
        (
            lambda: auc(GOOD, TRUTH, higher_is_wrong=1),
            TypeError,
            "auc: higher_is_wrong must be a bool, got int",
        ),
        (lambda: detect(GOOD, name=3), TypeError, "detect: name must be a str, got int"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        ("sklearn", "detect([1.0, 2.0, 9.0])", "detect needs scikit-learn"),
        ("sklearn", "auc([1.0, 2.0], [True, False])", "auc needs scikit-learn"),
        (
            "matplotlib",
            "detect([1.0, 2.0], threshold=1.5).plot('x.png')",
            "DetectionReport.plot needs matplotlib",
        ),
    ],
)
def test_missing_extra(module, call, message, tmp_path):
    """The package imports without it; what needs it says what to install."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from robustcore.losses.noise_detection import *\n"
        f"print(select_threshold([1.0, 2.0, 9.0], 'otsu'))\n"
        f"try:\n    {call}\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "5.5",
        f"{message}, which is not installed: install the extra `analysis` (scikit-learn, "
        "matplotlib)",
    ]
