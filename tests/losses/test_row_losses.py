"""What every loss over rows of logits promises, checked on each loss that there is.

A loss takes part by its ``case()`` in robustcore.testing.samples_losses; nothing has to be added
here. Values, exact corners and errors of a single loss are in its own test module.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.row_loss_cases import CASES, STATELESS, named, raw_arguments, samples_of, small
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import robustcore
from robustcore.losses._row_loss import ROW_LOSSES
from robustcore.testing import OperatorCase, Sample, assert_matches, check_sample

OPS = torch.ops.robustcore

every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_stateless_loss = pytest.mark.parametrize("case", STATELESS.values(), ids=STATELESS.keys())


def test_every_row_loss_has_a_case() -> None:
    assert set(CASES) == set(ROW_LOSSES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@every_loss
def test_samples_match_the_float64_reference(case: OperatorCase, dtype: torch.dtype) -> None:
    """Results, their repetition bit for bit, and gradients."""
    for sample in samples_of(case.name):
        for finding in check_sample(case, sample, "cpu", dtype):
            assert finding.comparison.passed, f"{sample.name}: {finding}"


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@every_loss
def test_numerical_derivatives(case: OperatorCase, check: Any) -> None:
    for sample in small(case):
        with_leaves = sample.float64().requires_grad(case.differentiable)
        leaves = with_leaves.leaves()

        def loss(*values: torch.Tensor, sample=with_leaves, names=tuple(leaves)) -> torch.Tensor:
            given = dict(zip(names, values))
            args = [given.get(str(k), a) for k, a in enumerate(sample.args)]
            return case.function(*args, **{k: given.get(k, v) for k, v in sample.kwargs.items()})

        # The slow mode of the second check would take minutes.
        options = {"fast_mode": True} if check is gradgradcheck else {}
        assert check(loss, tuple(leaves.values()), **options), sample.name


@every_loss
def test_one_thread_and_many_give_the_same_bits(case: OperatorCase, threads: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    base = named(case, "small")
    rows, classes = 700, 301

    def grown(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        shape = (rows, classes) if value.dim() == 2 else (rows,)
        if value.is_floating_point():
            numbers = torch.randn(shape, generator=generator)
            # Temperatures stay positive.
            positive = value.dim() == 1 and bool((value > 0).all())
            return numbers.abs() + 0.5 if positive else numbers
        return torch.randint(classes, shape, generator=generator)

    args = [grown(value) for value in base.args]
    kwargs = {k: v for k, v in base.kwargs.items() if not isinstance(v, torch.Tensor)}
    results = []
    for count in (1, 2, 5):
        with threads(count):
            logits = args[0].clone().requires_grad_()
            loss = case.function(logits, *args[1:], **kwargs)
            results.append((loss.detach(), *torch.autograd.grad(loss, logits)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@every_loss
def test_a_row_does_not_reach_another(case: OperatorCase, value: float) -> None:
    sample = named(case, "everything at once, reduction none").requires_grad(case.differentiable)
    clean = case.function(*sample.args, **sample.kwargs)
    clean_gradients = torch.autograd.grad(clean.sum(), list(sample.leaves().values()))
    spoiled = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in sample.args]
    spoiled[0][3] = value
    dirty_sample = Sample("dirty", tuple(spoiled), sample.kwargs).requires_grad(case.differentiable)
    dirty = case.function(*dirty_sample.args, **dirty_sample.kwargs)
    dirty_gradients = torch.autograd.grad(dirty.sum(), list(dirty_sample.leaves().values()))
    others = torch.arange(len(clean)) != 3
    assert torch.equal(clean[others], dirty[others])
    for a, b in zip(clean_gradients, dirty_gradients):
        assert torch.equal(a[others], b[others])


@every_loss
def test_an_ignored_row_may_hold_anything(case: OperatorCase) -> None:
    sample = named(case, "everything at once, reduction sum")
    spoiled = [a.clone() if isinstance(a, torch.Tensor) else a for a in sample.args]
    for tensor in spoiled:
        if tensor.is_floating_point():
            tensor[5] = torch.nan
    dirty = Sample("dirty", tuple(spoiled), sample.kwargs).requires_grad(case.differentiable)
    loss = case.function(*dirty.args, **dirty.kwargs)
    assert torch.equal(loss, case.function(*sample.args, **sample.kwargs))
    for gradient in torch.autograd.grad(loss, list(dirty.leaves().values())):
        assert (gradient[5] == 0).all()


@every_loss
def test_backward_twice_and_scaled(case: OperatorCase) -> None:
    sample = small(case)[0].requires_grad(case.differentiable)
    leaves = list(sample.leaves().values())
    loss = case.function(*sample.args, **sample.kwargs)
    once = torch.autograd.grad(loss, leaves, torch.tensor(3.0), retain_graph=True)
    kept = [g.clone() for g in once]
    twice = torch.autograd.grad(loss, leaves, torch.tensor(3.0))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, kept, twice))


class TestInplaceGradients:
    """The opt-in that lets gradients overwrite the logits."""

    @every_loss
    def test_same_gradients_and_a_version_that_moves(self, case: OperatorCase) -> None:
        for sample in small(case):
            if sample.kwargs.get("reduction") == "none":
                continue
            results = []
            for inplace in (False, True):
                leaf = sample.args[0].clone().requires_grad_()
                logits = leaf * 1.0
                before = logits._version
                loss = case.function(
                    logits, *sample.args[1:], **sample.kwargs, inplace_gradients=inplace
                )
                assert (logits._version > before) == inplace
                results.append(torch.autograd.grad(loss, leaf)[0])
            assert torch.equal(*results)

    @every_loss
    def test_misuse(self, case: OperatorCase) -> None:
        sample = small(case)[0]
        leaf = sample.args[0].clone().requires_grad_()
        rest, options = sample.args[1:], {**sample.kwargs, "inplace_gradients": True}
        with pytest.raises(ValueError, match="must not be a leaf that requires grad"):
            case.function(leaf, *rest, **options)
        for view in (leaf.view_as(leaf), leaf[None][0]):
            with pytest.raises(ValueError, match="or a view of one"):
                case.function(view, *rest, **options)
        assert torch.equal(leaf, sample.args[0])
        logits = leaf * 1.0
        still_needed = logits.square().sum()
        loss = case.function(logits, *rest, **options)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            still_needed.backward()
        torch.autograd.grad(loss, leaf, retain_graph=True)
        with pytest.raises(RuntimeError, match="one backward pass only"):
            torch.autograd.grad(loss, leaf)

    @every_loss
    def test_a_leaf_of_three_dimensions_keeps_its_values(self, case: OperatorCase) -> None:
        """It reaches the operators as a view of itself."""
        sample = small(case)[0]
        leaf = sample.args[0][None].clone().requires_grad_()
        shape = sample.args[0].shape

        def deeper(value: Any) -> Any:
            # States of examples and class weights have no batch dimension.
            rows = isinstance(value, torch.Tensor) and value.shape[:1] == shape[:1]
            return value[None] if rows else value

        rest = [deeper(value) for value in sample.args[1:]]
        options = {k: v if k == "weight" else deeper(v) for k, v in sample.kwargs.items()}
        with pytest.raises(ValueError, match="or a view of one"):
            case.function(leaf, *rest, **options, inplace_gradients=True)
        assert torch.equal(leaf[0], sample.args[0])

    @pytest.mark.parametrize("form", ["same", "view", "constant", "overlapping"])
    def test_logits_that_share_memory_are_not_overwritten(self, form: str) -> None:
        def loss(inplace: bool) -> torch.Tensor:
            memory = leaf * 1.0
            logits = memory[:6]
            other = {
                "same": logits,
                "view": logits.view(6, 5),
                "constant": logits.detach(),
                "overlapping": memory[2:],
            }[form]
            gate, target = torch.full((6,), 0.3), torch.arange(6) % 5
            return robustcore.losses.mixture_cross_entropy(
                logits, other, gate, target, 2.0, 0.5, inplace_gradients=inplace
            )

        leaf = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        gradients = [torch.autograd.grad(loss(inplace), leaf)[0] for inplace in (True, False)]
        assert torch.equal(*gradients)

    def test_parts_of_one_tensor_are_overwritten(self) -> None:
        leaf = torch.randn(8, 8, requires_grad=True)
        both = leaf * 1.0
        logits, other = both.chunk(2)
        robustcore.losses.mixture_cross_entropy(
            logits, other, torch.zeros(4), torch.arange(4), inplace_gradients=True
        )
        assert not torch.equal(both[:4], leaf[:4])
        assert not torch.equal(both[4:], leaf[4:])


class TestTransforms:
    @every_loss
    def test_func_grad_and_its_grad(self, case: OperatorCase) -> None:
        sample = small(case)[0].float64()

        def nested(function: Any) -> Any:
            def loss(logits: torch.Tensor) -> torch.Tensor:
                return function(logits, *sample.args[1:], **sample.kwargs)

            return torch.func.grad(lambda z: torch.func.grad(loss)(z).square().sum())

        logits = sample.args[0]
        assert_matches(
            nested(case.function)(logits), nested(case.reference)(logits), rtol=1e-9, atol=1e-12
        )

    @every_loss
    def test_vmap(self, case: OperatorCase) -> None:
        sample = small(case)[0].float64()
        batch = torch.stack([sample.args[0], 2 * sample.args[0]])

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return case.function(logits, *sample.args[1:], **sample.kwargs)

        expected = torch.stack([loss(logits) for logits in batch])
        assert_matches(torch.func.vmap(loss)(batch), expected, rtol=1e-12)
        gradients = torch.func.vmap(torch.func.grad(loss))(batch)
        expected = torch.stack([torch.func.grad(loss)(logits) for logits in batch])
        assert_matches(gradients, expected, rtol=1e-12)

    @every_loss
    def test_batched_cotangents(self, case: OperatorCase) -> None:
        sample = small(case)[0].requires_grad(case.differentiable)
        leaves = list(sample.leaves().values())
        loss = case.function(*sample.args, **sample.kwargs)
        (single, *_) = torch.autograd.grad(loss, leaves, retain_graph=True)
        (both, *_) = torch.autograd.grad(
            loss, leaves, torch.tensor([1.0, 2.0]), is_grads_batched=True
        )
        assert_matches(both, torch.stack([single, 2 * single]), rtol=1e-6, atol=1e-8)

    @every_loss
    def test_forward_mode_is_refused(self, case: OperatorCase) -> None:
        sample = small(case)[0]
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(sample.args[0], torch.ones_like(sample.args[0]))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                case.function(dual, *sample.args[1:], **sample.kwargs)

    @every_loss
    def test_compile_in_one_graph(self, case: OperatorCase) -> None:
        compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
        for sample in small(case)[:3]:
            eager = sample.requires_grad(case.differentiable)
            traced = sample.requires_grad(case.differentiable)
            expected = case.function(*eager.args, **eager.kwargs).sum()
            actual = compiled(*traced.args, **traced.kwargs).sum()
            assert_matches(actual, expected, rtol=1e-6)
            expected.backward()
            actual.backward()
            for name, leaf in eager.leaves().items():
                assert leaf.grad is not None
                assert_matches(traced.leaves()[name].grad, leaf.grad, rtol=1e-5, atol=1e-7)

    @every_loss
    def test_autocast_returns_float32(self, case: OperatorCase) -> None:
        sample = small(case)[0].to(dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert case.function(*sample.args, **sample.kwargs).dtype == torch.float32
        assert case.function(*sample.args, **sample.kwargs).dtype == torch.bfloat16

    @every_loss
    def test_meta_tensors(self, case: OperatorCase) -> None:
        sample = small(case)[0].to(device="meta").requires_grad(case.differentiable)
        loss = case.function(*sample.args, **sample.kwargs)
        assert loss.shape == ()
        loss.backward()
        assert all(leaf.grad is not None for leaf in sample.leaves().values())

    @every_loss
    def test_use_reference(self, case: OperatorCase) -> None:
        sample = named(case, "everything at once, reduction mean")
        with robustcore.use_reference():
            forced = case.function(*sample.args, **sample.kwargs)
        assert torch.equal(forced, case.reference(*sample.args, **sample.kwargs))


class TestRawOperators:
    @pytest.mark.parametrize("grad", [False, True])
    @every_stateless_loss
    def test_opcheck(self, case: OperatorCase, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        # Class probabilities without a reduction, and a scalar loss of class indices.
        raw = list(raw_arguments(case, small(case)[2 if grad else 1], monkeypatch))
        for place in (0, 1):
            if raw[place] is not None:
                raw[place] = torch.stack([raw[place]] * 2, 2)[..., 0].requires_grad_(grad)
        torch.library.opcheck(getattr(OPS, case.name).default, tuple(raw))
        shape = (raw[0].shape[0],) if raw[14] == 0 else ()
        cotangent = torch.rand(shape, requires_grad=grad)
        backward = getattr(OPS, case.name + "_backward").default
        torch.library.opcheck(backward, (cotangent, *raw, True, raw[1] is not None))
        if raw[14] and not grad:
            made = getattr(OPS, case.name + "_with_gradients").default
            torch.library.opcheck(made, (*raw, True, False))
            raw[0] = raw[0].contiguous()
            raw[1] = None if raw[1] is None else raw[1].contiguous()
            in_place = getattr(OPS, case.name + "_with_gradients_").default
            torch.library.opcheck(in_place, (*raw, True, raw[1] is not None))

    @every_stateless_loss
    def test_a_raw_call_is_differentiable(
        self, case: OperatorCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sample = small(case)[0].float64()
        raw = list(raw_arguments(case, sample, monkeypatch))
        raw[0] = raw[0].clone().requires_grad_()
        loss = getattr(OPS, case.name)(*raw)
        expected = ROW_LOSSES[case.name].reference(*raw)
        (actual,) = torch.autograd.grad(loss, raw[0])
        assert_matches(actual, torch.autograd.grad(expected, raw[0])[0], rtol=1e-9, atol=1e-12)

    @every_stateless_loss
    def test_what_has_no_derivative_is_refused_not_dropped(
        self, case: OperatorCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = list(raw_arguments(case, small(case)[1], monkeypatch))
        weight = torch.ones(raw[0].shape[1]) if raw[6] is None else raw[6]
        raw[6] = weight.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="weight has no derivative"):
            getattr(OPS, case.name)(*raw).backward()
        made = getattr(OPS, case.name + "_with_gradients")
        raw[0] = raw[0].clone().requires_grad_()
        with pytest.raises(RuntimeError, match="returns gradients and has none itself"):
            made(*raw, True, False)[0].backward()

    @every_stateless_loss
    def test_wrong_raw_arguments_are_refused(
        self, case: OperatorCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = raw_arguments(case, small(case)[0], monkeypatch)
        for place, bad, message in (
            (0, raw[0].long(), "logits must be float32"),
            (0, raw[0][0], "logits must have 2 dimensions"),
            (1, raw[0].double(), "second matrix has the wrong dtype"),
            (1, raw[0][:, :3], "second matrix must have the shape"),
            (4, torch.zeros(1), "third row value must have 4 elements"),
            (5, raw[5].int(), "target has the wrong dtype"),
            (6, torch.ones(2), "weight must have 5 elements"),
            (8, [0.0] * 9, "at most 4 parameters"),
            (14, 7, "reduction must be 0, 1 or 2"),
        ):
            arguments = list(raw)
            arguments[place] = bad
            with pytest.raises(RuntimeError, match=message):
                getattr(OPS, case.name)(*arguments)
