"""linear_gated_cross_entropy: against the reference and the two steps, chunks, corners."""

from __future__ import annotations

import gc
import math

import pytest
import strategies
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import robustcore
from robustcore import reference
from robustcore.losses import (
    _linear_gated_cross_entropy_op,
    gated_cross_entropy,
    linear_gated_cross_entropy,
)
from robustcore.losses._linear_chunks import Head, logit_chunks, rows_per_chunk
from robustcore.losses._sums import sum_in_order
from robustcore.testing import assert_matches, check_sample
from robustcore.testing.samples_losses.linear_gated_cross_entropy import case, samples

CASE = case()
SAMPLES = {sample.name: sample for sample in samples()}


def problem(
    rows: int = 12,
    classes: int = 7,
    width: int = 5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Seven leaves and the target; no row is ignored."""
    generator = strategies.seeded(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    leaves = [
        normal(rows, width),
        normal(classes, width),
        normal(classes),
        normal(rows, width + 1),
        normal(classes, width + 1),
        normal(classes),
        normal(rows),
    ]
    return leaves, torch.randint(classes, (rows,), generator=generator)


def two_steps(x, weight, bias, noise_x, noise_weight, noise_bias, gate, target, **options):
    options["weight"] = options.pop("class_weight", None)
    return gated_cross_entropy(
        F.linear(x, weight, bias),
        F.linear(noise_x, noise_weight, noise_bias),
        gate,
        target,
        **options,
    )


@pytest.mark.parametrize("dtype", list(CASE.rtol), ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    for finding in check_sample(CASE, SAMPLES[name], "cpu", dtype):
        assert finding.comparison.passed, f"{finding.quantity}: {finding.comparison.problem}"


@settings(max_examples=40)
@given(
    st.integers(0, 40),
    st.sampled_from([1, 2, 7, 33]),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 50)),
    strategies.floating_dtypes,
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_gradients_equal_those_of_two_steps(
    rows: int,
    classes: int,
    width: int,
    chunk_rows: int | None,
    dtype: torch.dtype,
    reduction: str,
    label_smoothing: float,
    weighted: bool,
    seed: int,
) -> None:
    leaves, target = problem(rows, classes, width, dtype, seed)
    generator = strategies.seeded(seed + 1)
    target = target.masked_fill(torch.rand(rows, generator=generator) < 0.2, -100)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    inputs = list(leaves)
    if weighted:
        options["class_weight"] = torch.rand(classes, generator=generator) + 0.1
        options["sample_weight"] = torch.rand(rows, generator=generator).requires_grad_()
        inputs.append(options["sample_weight"])
    ours = linear_gated_cross_entropy(*leaves, target, chunk_rows=chunk_rows, **options)
    theirs = two_steps(*leaves, target, **options)
    # Both round the logits and their gradients to the dtype; they differ in how the classes are
    # blocked and, for 16-bit weights, in where sums over rows are rounded.
    eps = torch.finfo(dtype).eps
    assert ours.dtype == theirs.dtype
    assert_matches(ours, theirs, rtol=8 * eps, atol=8 * eps)
    cotangent = torch.full_like(ours, 1.5)
    gradients = torch.autograd.grad(ours, inputs, cotangent)
    expected = torch.autograd.grad(theirs, inputs, cotangent)
    for a, b in zip(gradients, expected):
        scale = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
        assert_matches(a, b, rtol=8 * eps, atol=8 * eps * (1 + scale))


@settings(max_examples=40)
@given(
    st.integers(1, 20),
    st.sampled_from([1, 2, 7, 33]),
    st.one_of(st.none(), st.integers(1, 25)),
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([None, 1.5, 30.0]),
    st.sampled_from([0.0, 0.05]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_options_equal_those_of_two_steps_in_float64(
    rows: int,
    classes: int,
    chunk_rows: int | None,
    reduction: str,
    temperature: float,
    softcap: float | None,
    lse_square_scale: float,
    soft: bool,
    weighted: bool,
    seed: int,
) -> None:
    leaves, target = problem(rows, classes, 4, torch.float64, seed)
    generator = strategies.seeded(seed + 1)
    if soft:
        target = torch.rand(rows, classes, generator=generator, dtype=torch.float64)
    options = {
        "reduction": reduction,
        "temperature": temperature,
        "softcap": softcap,
        "lse_square_scale": lse_square_scale,
    }
    inputs = list(leaves)
    if weighted:
        options["class_weight"] = torch.rand(classes, generator=generator).double() + 0.1
        options["sample_weight"] = torch.rand(rows, generator=generator).double().requires_grad_()
        inputs.append(options["sample_weight"])
    ours = linear_gated_cross_entropy(*leaves, target, chunk_rows=chunk_rows, **options)
    theirs = two_steps(*leaves, target, **options)
    assert_matches(ours, theirs, rtol=1e-12, atol=1e-12)
    cotangent = torch.rand(ours.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(ours, inputs, cotangent)
    for a, b in zip(gradients, torch.autograd.grad(theirs, inputs, cotangent)):
        assert_matches(a, b, rtol=1e-11, atol=1e-12)


def test_the_gradients_of_16_bit_weights_are_summed_in_float32() -> None:
    """Many chunks with small contributions: a bfloat16 sum would stop growing."""
    rows = 300
    x = torch.ones(rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    zeros = torch.zeros(2, 1, dtype=torch.bfloat16)
    loss = linear_gated_cross_entropy(
        x,
        weight,
        bias,
        x,
        zeros,
        None,
        torch.full((rows,), -50.0),
        torch.zeros(rows, dtype=torch.int64),
        reduction="sum",
        chunk_rows=1,
    )
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.flatten().tolist() == [-rows / 2, rows / 2]


class TestChunks:
    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_every_size_of_chunks_gives_the_same_result(self, reduction: str) -> None:
        leaves, target = problem(dtype=torch.float64)
        target[3] = -100
        expected = None
        for chunk_rows in (None, 1, 5, 12, 100):
            loss = linear_gated_cross_entropy(
                *leaves, target, reduction=reduction, chunk_rows=chunk_rows
            )
            results = (loss, *torch.autograd.grad(loss.sum(), leaves))
            expected = expected or results
            for a, b in zip(results, expected):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)

    def test_no_tensor_of_all_logits_ever_lives(self) -> None:
        """Counts the elements of every tensor that torch hands out on the way."""
        rows, classes, chunk_rows = 64, 1000, 4
        leaves, target = problem(rows, classes, 2)
        largest = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal largest
                result = function(*args, **(kwargs or {}))
                for each in tree_leaves(result):
                    if isinstance(each, torch.Tensor):
                        largest = max(largest, each.numel())
                return result

        probabilities = torch.rand(rows, classes, dtype=torch.float64)
        # The implementations themselves: a call through the dispatcher would show its results only.
        for reduction in (0, 1):
            arguments = (
                *(*leaves, target, None, None, -100, 0.0),
                *(1.0, 0.0, 0.0, reduction, chunk_rows),
            )
            with torch.no_grad(), Watch():
                loss = _linear_gated_cross_entropy_op._forward_kernel(*arguments)
                _linear_gated_cross_entropy_op._backward_kernel(loss, *arguments, [True] * 8)
        with Watch():
            for labels in (target, probabilities):
                torch.autograd.grad(
                    linear_gated_cross_entropy(*leaves, labels, chunk_rows=chunk_rows), leaves
                )
        assert largest == chunk_rows * classes > leaves[4].numel()

    def test_the_loss_holds_gradients_but_no_logits(self) -> None:
        leaves, target = problem(64, 1000, 3)
        loss = linear_gated_cross_entropy(*leaves, target, chunk_rows=4)
        gc.collect()
        held = [
            each.numel()
            for each in gc.get_objects()
            if issubclass(type(each), torch.Tensor) and each.shape[-1:] == (1000,)
        ]
        assert loss.requires_grad
        assert max(held) <= 1000

    def test_the_budget(self) -> None:
        def rows(count, classes, width, chunk_rows=0):
            empty = torch.empty(1).expand
            head = Head(empty(count, width), empty(classes, width), None)
            return rows_per_chunk((head, head), chunk_rows)

        assert rows(2048, 32000, 256) == 192  # 48 MiB: 2 heads, 4 bytes
        assert rows(10**6, 32000, 4096) == 2048  # the weights take a gigabyte
        assert rows(100, 10, 64) == 100
        assert rows(100, 10**9, 1) >= 1
        assert rows(100, 10, 64, chunk_rows=7) == 7
        assert rows(0, 10, 64) == 1

    def test_one_head_alone_is_served_by_the_same_loop(self) -> None:
        x, weight = torch.randn(10, 4), torch.randn(6, 4)
        parts = [
            (rows, logits.clone()) for rows, (logits,) in logit_chunks([Head(x, weight, None)], 4)
        ]
        assert [(rows.start, rows.stop) for rows, _ in parts] == [(0, 4), (4, 8), (8, 10)]
        torch.testing.assert_close(torch.cat([logits for _, logits in parts]), x @ weight.t())

    def test_products_cut_along_the_classes(self, monkeypatch) -> None:
        monkeypatch.setattr(robustcore.losses._linear_chunks, "_BLOCK_BYTES", 64)
        for dtype in (torch.float32, torch.bfloat16):
            leaves, target = problem(dtype=dtype)
            ours = linear_gated_cross_entropy(*leaves, target, chunk_rows=5)
            theirs = two_steps(*leaves, target)
            eps = torch.finfo(dtype).eps
            pairs = zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))
            for a, b in pairs:
                assert_matches(a, b, rtol=8 * eps, atol=8 * eps)

    def test_long_sums_keep_an_order(self, threads) -> None:
        values = torch.randn(200_000, dtype=torch.float64)
        with threads(1):
            single = sum_in_order(values)
        with threads(2):
            assert torch.equal(sum_in_order(values), single)
        torch.testing.assert_close(single, values.sum())


class TestCorners:
    def test_empty_batch(self) -> None:
        leaves, target = problem(rows=0)
        assert linear_gated_cross_entropy(*leaves, target, reduction="none").shape == (0,)
        assert linear_gated_cross_entropy(*leaves, target).isnan()
        loss = linear_gated_cross_entropy(*leaves, target, reduction="sum")
        assert loss.item() == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, leaves))

    @pytest.mark.parametrize("chunk_rows", [None, 3])
    def test_all_rows_ignored(self, chunk_rows: int | None) -> None:
        leaves, target = problem()
        target.fill_(-100)
        weights = torch.rand(12, requires_grad=True)
        loss = linear_gated_cross_entropy(
            *leaves, target, sample_weight=weights, chunk_rows=chunk_rows
        )
        assert math.isnan(loss.item())
        assert all((g == 0).all() for g in torch.autograd.grad(loss, [*leaves, weights]))

    @pytest.mark.parametrize("chunk_rows", [None, 3])
    @pytest.mark.parametrize("reduction", ["none", "mean"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_ignored_rows_may_hold_anything(self, value, reduction, chunk_rows) -> None:
        leaves, target = problem()
        target[4] = -100
        weights = torch.rand(12).requires_grad_()
        options = {"reduction": reduction, "chunk_rows": chunk_rows}
        kept = linear_gated_cross_entropy(*leaves, target, sample_weight=weights, **options)
        expected = (kept, *torch.autograd.grad(kept.sum(), [*leaves, weights]))
        with torch.no_grad():
            for place in (0, 3, 6):
                leaves[place][4] = value
            weights[4] = value
        loss = linear_gated_cross_entropy(*leaves, target, sample_weight=weights, **options)
        results = (loss, *torch.autograd.grad(loss.sum(), [*leaves, weights]))
        for a, b in zip(results, expected):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("place", [0, 3, 6])
    def test_nan_stays_in_its_row(self, place: int) -> None:
        leaves, target = problem()
        with torch.no_grad():
            leaves[place][4] = math.nan
        rows = linear_gated_cross_entropy(*leaves, target, reduction="none", chunk_rows=5)
        assert rows.isnan().tolist() == [i == 4 for i in range(12)]
        others = [i for i in range(12) if i != 4]
        for row_wise in (0, 3, 6):
            (gradient,) = torch.autograd.grad(rows.sum(), leaves[row_wise], retain_graph=True)
            assert gradient[4].isnan().all()
            assert gradient[others].isfinite().all()

    def test_features_may_be_shared(self) -> None:
        leaves, target = problem(dtype=torch.float64)
        x, weight, bias, _, noise_weight, noise_bias, gate = leaves
        arguments = (x, weight, bias, x, noise_weight[:, :5], noise_bias, gate, target)
        (ours,) = torch.autograd.grad(linear_gated_cross_entropy(*arguments, chunk_rows=5), x)
        (theirs,) = torch.autograd.grad(two_steps(*arguments), x)
        torch.testing.assert_close(ours, theirs)

    def test_any_leading_dimensions(self) -> None:
        leaves, target = problem()
        x, weight, bias, noise_x, noise_weight, noise_bias, gate = leaves
        flat = linear_gated_cross_entropy(*leaves, target, reduction="none")
        shaped = linear_gated_cross_entropy(
            x.reshape(3, 4, 5),
            weight,
            bias,
            noise_x.reshape(3, 4, 6),
            noise_weight,
            noise_bias,
            gate.reshape(3, 4, 1),
            target.reshape(3, 4),
            reduction="none",
        )
        assert torch.equal(shaped, flat.reshape(3, 4))
        one = linear_gated_cross_entropy(
            x[0], weight, bias, noise_x[0], noise_weight, noise_bias, gate[0], target[0]
        )
        torch.testing.assert_close(one, flat[0])


def test_same_bits_in_every_run_and_for_any_number_of_threads(threads) -> None:
    leaves, target = problem(300, 130, 40)

    def run(reduction: str) -> list[torch.Tensor]:
        loss = linear_gated_cross_entropy(*leaves, target, reduction=reduction, chunk_rows=64)
        return [loss, *torch.autograd.grad(loss.sum(), leaves)]

    for reduction in ("none", "mean"):
        with threads(1):
            single = run(reduction)
        for count in (1, 2):
            with threads(count):
                assert all(torch.equal(a, b) for a, b in zip(run(reduction), single))


def test_the_reference_can_be_forced() -> None:
    leaves, target = problem()
    with robustcore.use_reference():
        forced = linear_gated_cross_entropy(*leaves, target, label_smoothing=0.1)
    expected = reference.losses.linear_gated_cross_entropy(*leaves, target, label_smoothing=0.1)
    assert torch.equal(forced, expected)
