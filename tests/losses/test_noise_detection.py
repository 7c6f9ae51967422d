"""Scores to thresholds, numbers, tables and plots; against definitions written out here."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from robustcore.losses import gated_cross_entropy_scores, noise_detection
from robustcore.losses.noise_detection import (
    DetectionReport,
    auc,
    detect,
    precision_recall,
    select_threshold,
)

pytest.importorskip("sklearn", reason="noise detection needs scikit-learn")

SCORES = st.lists(st.integers(-8, 8).map(lambda number: number / 4), min_size=2, max_size=40)


def two_groups(right=400, wrong=100, distance=6.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(right + wrong, generator=generator)
    truth = torch.arange(right + wrong) >= right
    scores = scores + distance * truth
    order = torch.randperm(len(scores), generator=generator)
    return scores[order], truth[order]


def pairwise_auc(scores, wrong):
    """The definition: how often a wrong label has the higher score."""
    above = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i in range(len(scores))
        for j in range(len(scores))
        if wrong[i] and not wrong[j]
    ]
    return sum(above) / len(above)


@given(SCORES, st.data())
def test_auc_is_the_share_of_pairs_in_order(scores, data):
    size = len(scores)
    wrong = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    if all(wrong) or not any(wrong):
        with pytest.raises(ValueError, match="auc: wrong must hold right and wrong labels"):
            auc(scores, wrong)
        return
    expected = pairwise_auc(scores, wrong)
    assert auc(scores, wrong) == pytest.approx(expected, abs=1e-12)
    reverse = auc([-value for value in scores], wrong, higher_is_wrong=False)
    assert reverse == pytest.approx(expected, abs=1e-12)


@given(SCORES, st.data())
def test_counts_at_a_threshold(scores, data):
    size = len(scores)
    wrong = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    threshold = data.draw(st.sampled_from([*scores, -math.inf, math.inf, 0.1]))
    found = precision_recall(scores, wrong, threshold)
    flagged = [value >= threshold for value in scores]
    hits = sum(a and b for a, b in zip(flagged, wrong, strict=True))
    assert (found.flagged, found.found) == (sum(flagged), hits)
    assert (found.wrong, found.count) == (sum(wrong), size)
    assert found.precision == (hits / sum(flagged) if any(flagged) else None)
    assert found.recall == (hits / sum(wrong) if any(wrong) else None)
    if found.precision and found.recall:
        harmonic = 2 / (1 / found.precision + 1 / found.recall)
        assert found.f1 == pytest.approx(harmonic)
    reverse = precision_recall(
        [-value for value in scores], wrong, -threshold, higher_is_wrong=False
    )
    assert reverse == found


@given(SCORES)
def test_otsu_is_the_best_of_all_cuts(scores):
    values = np.asarray(scores)
    distinct = np.unique(values)
    if len(distinct) == 1:
        with pytest.raises(ValueError, match="two different finite values"):
            select_threshold(scores, "otsu")
        return

    def between(cut):
        low, high = values[values < cut], values[values >= cut]
        return len(low) * len(high) * (high.mean() - low.mean()) ** 2

    threshold = select_threshold(scores, "otsu")
    assert distinct[0] < threshold <= distinct[-1]
    best = max(between(cut) for cut in distinct[1:])
    assert between(threshold) == pytest.approx(best, rel=1e-9)


@given(SCORES, st.floats(0, 1))
def test_rate_flags_that_share_and_ties(scores, rate):
    report = detect(scores, method="rate", rate=rate)
    wanted = round(rate * len(scores))
    assert len(report.suspects) >= wanted
    if wanted == 0:
        assert (len(report.suspects), report.threshold) == (0, math.inf)
        return
    last = sorted(scores)[-wanted]
    assert report.threshold == last
    assert len(report.suspects) == sum(value >= last for value in scores)


@pytest.mark.parametrize("method", ["gaussian_mixture", "otsu"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_threshold_separates_two_groups(method, share):
    wrong_count = int(1000 * share)
    scores, wrong = two_groups(1000 - wrong_count, wrong_count, distance=8.0)
    report = detect(scores, wrong, method=method)
    assert report.quality.precision > 0.98
    assert report.quality.recall > 0.98
    assert report.flagged_rate == pytest.approx(share, abs=0.02)
    assert report.auc > 0.999


def test_the_mixture_cuts_where_both_components_are_equally_likely():
    # Equal weights and spreads: half-way between the means.
    scores, _ = two_groups(20_000, 20_000, distance=6.0)
    assert select_threshold(scores) == pytest.approx(3.0, abs=0.06)


def test_the_mixture_does_not_flag_the_lowest_scores():
    generator = torch.Generator().manual_seed(3)
    narrow = 0.1 * torch.randn(900, generator=generator)
    wide = 3 + 3 * torch.randn(100, generator=generator)
    scores = torch.cat((narrow, wide))
    threshold = select_threshold(scores)
    assert 0 < threshold < 3
    assert scores.min() < -1  # left of everything that is narrow, and not flagged
    assert int(scores.argmin()) not in detect(scores).suspects.tolist()


@pytest.mark.parametrize("method", ["gaussian_mixture", "otsu"])
# Where squares leave the range of float64, too.
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-6, 1.0, 1e6, 1e200, 1e300])
def test_thresholds_follow_scale_shift_and_direction(method, scale):
    scores, _ = two_groups()
    scores = scores.double()
    base = select_threshold(scores, method)
    moved = select_threshold(scale * scores + 5 * scale, method)
    assert moved == pytest.approx(scale * (base + 5), rel=1e-6)
    assert select_threshold(-scores, method, higher_is_wrong=False) == pytest.approx(-base)
    assert select_threshold(scores, method) == base


def test_nan_rows_and_rows_left_out_are_not_there():
    scores, wrong = two_groups()
    some = torch.zeros(len(scores), dtype=torch.bool)
    some[::7] = True
    with_nan = scores.masked_fill(some, math.nan)
    reports = [
        detect(with_nan, wrong),
        detect(scores, wrong, valid=~some),
        detect(scores[~some], wrong[~some]),
    ]
    assert [report.excluded for report in reports] == [int(some.sum())] * 2 + [0]
    numbers = [{**report.to_dict(), "excluded": 0} for report in reports]
    assert numbers[0] == numbers[1] == numbers[2]
    assert torch.equal(reports[0].suspects, reports[1].suspects)
    # Positions are those of the whole input.
    positions = torch.arange(len(scores))[~some]
    assert torch.equal(reports[0].suspects, positions[reports[2].suspects])
    assert not some[reports[0].suspects].any()


def test_infinite_scores_are_the_most_and_the_least_suspicious():
    scores, wrong = two_groups()
    first_wrong, first_right = int(wrong.nonzero()[0]), int((~wrong).nonzero()[0])
    scores[first_wrong], scores[first_right] = math.inf, -math.inf
    for method in ("gaussian_mixture", "otsu"):
        report = detect(scores, wrong, method=method)
        assert report.suspects[0] == first_wrong
        assert first_right not in report.suspects
        assert math.isfinite(report.threshold)
        assert report.auc == pytest.approx(pairwise_auc(scores.tolist(), wrong.tolist()))


def test_suspects_come_most_suspicious_first_and_ties_in_order():
    report = detect([0.5, 3.0, 1.0, 3.0, 2.0], threshold=1.0)
    assert report.suspects.tolist() == [1, 3, 4, 2]
    report = detect([-0.5, -3.0, -1.0, -3.0, -2.0], threshold=-1.0, higher_is_wrong=False)
    assert report.suspects.tolist() == [1, 3, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_scores_of_a_loss(dtype):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(5, (300,), generator=generator)
    wrong = torch.rand(300, generator=generator) < 0.2
    label = torch.where(wrong, (clean + 1) % 5, clean)
    logits = 6 * F.one_hot(clean, 5) + torch.randn(300, 5, generator=generator)
    logits = logits.to(dtype).requires_grad_()
    label[0] = -100
    scores = gated_cross_entropy_scores(
        logits, torch.zeros_like(logits), torch.zeros(300), label, reduction="none"
    )
    report = detect(scores.log_probability, wrong, method="otsu", higher_is_wrong=False)
    assert (report.count, report.excluded) == (299, 1)
    assert report.auc > 0.99
    assert report.quality.f1 > 0.95
    # The loss of an ignored row is 0: valid leaves it out. Differentiable scores are welcome.
    by_loss = detect(scores.loss, wrong, method="otsu", valid=label >= 0)
    assert (by_loss.count, by_loss.auc) == (299, pytest.approx(report.auc, abs=5e-3))


def test_any_shape_and_kind_of_array():
    scores, wrong = two_groups(30, 10)
    expected = detect(scores, wrong).to_dict()
    assert detect(scores.reshape(4, 10), wrong.reshape(4, 10)).to_dict() == expected
    assert detect(scores.numpy(), wrong.numpy()).to_dict() == expected
    assert detect(scores.tolist(), wrong.tolist()).to_dict() == expected
    strided = torch.stack((scores, scores), 1)[:, 0]
    assert detect(strided, wrong).to_dict() == expected


def printed(report: DetectionReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table())
    return console.file.getvalue()


def test_table_and_numbers_say_the_same():
    scores, wrong = two_groups()
    report = detect(scores, wrong, name="loss")
    numbers = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert numbers["wrong"] == 100
    assert numbers["flagged"] == len(report.suspects) == report.quality.flagged
    assert numbers["precision"] == report.quality.precision
    text = printed(report)
    for expected in ("loss", "500", f"{report.auc:.3f}", f"{report.quality.recall:.3f}", "≥"):
        assert expected in text


def test_report_without_truth():
    scores, _ = two_groups()
    report = detect(scores)
    assert (report.auc, report.average_precision, report.quality) == (None, None, None)
    assert "precision" not in report.to_dict()
    assert "AUC" not in printed(report)


@pytest.mark.parametrize("value", [False, True])
def test_report_where_all_labels_are_alike(value):
    scores, _ = two_groups()
    report = detect(scores, torch.full(scores.shape, value))
    assert (report.auc, report.average_precision) == (None, None)
    assert report.quality.recall == (len(report.suspects) / 500 if value else None)
    assert "–" in printed(report)


def test_a_report_that_flags_nothing(tmp_path):
    scores, wrong = two_groups()
    report = detect(scores, wrong, method="rate", rate=0.0)
    assert (report.quality.precision, report.quality.recall) == (None, 0.0)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["threshold"] is None
    assert "–" in printed(report)
    assert report.plot(tmp_path / "none.png").stat().st_size > 1000


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("known", [True, False])
def test_plot(tmp_path, suffix, known):
    pytest.importorskip("matplotlib")
    scores, wrong = two_groups()
    scores[0] = math.inf
    report = detect(scores, wrong if known else None)
    path = report.plot(tmp_path / f"plot.{suffix}")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="not supported"):
        report.plot(tmp_path / "plot.nothing")
    with pytest.raises(FileNotFoundError):
        report.plot(tmp_path / "missing" / "plot.png")


def test_all_public_names_are_documented():
    for name in noise_detection.__all__:
        assert getattr(noise_detection, name).__doc__
