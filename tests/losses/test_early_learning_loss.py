"""early_learning_loss: what tests/losses/test_row_losses.py does not check for every loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import robustcore
from robustcore.losses import EarlyLearningLoss, early_learning_loss
from robustcore.reference import losses as reference
from robustcore.testing import assert_matches

OPS = torch.ops.robustcore


def published(
    logits: Tensor, target: Tensor, index: Tensor, state: Tensor, beta: float, strength: float
) -> Tensor:
    """The formulas of the paper, for distinct examples; updates ``state``."""
    prediction = F.softmax(logits, dim=1).clamp(1e-4, 1.0 - 1e-4)
    detached = prediction.detach()
    state[index] = beta * state[index] + (1 - beta) * detached / detached.sum(1, keepdim=True)
    regulariser = (1 - (state[index] * prediction).sum(1)).log().mean()
    return F.cross_entropy(logits, target) + strength * regulariser


def batch(
    rows: int = 9, classes: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (rows,), generator=generator)
    index = torch.randperm(2 * rows, generator=generator)[:rows]
    return logits.to(dtype), target, index


@pytest.mark.parametrize(("beta", "strength"), [(0.7, 3.0), (0.9, 1.0), (0.9, 7.0), (0.0, 0.0)])
def test_published_formulas_over_several_steps(beta: float, strength: float) -> None:
    ours, theirs = torch.zeros(2, 18, 12, dtype=torch.float64)
    for step in range(4):
        logits, target, index = batch(seed=step, dtype=torch.float64)
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        actual = early_learning_loss(a, target, index, ours, beta=beta, strength=strength)
        expected = published(b, target, index, theirs, beta, strength)
        assert_matches(actual, expected, rtol=1e-12)
        assert_matches(ours, theirs, rtol=1e-12)
        assert_matches(
            torch.autograd.grad(actual, a)[0],
            torch.autograd.grad(expected, b)[0],
            rtol=1e-10,
            atol=1e-14,
        )


class TestRepeatedExamples:
    """The last row that is not ignored updates; all rows of the example use the result."""

    index = torch.tensor([4, 2, 4, 2, 4, 0])
    target = torch.tensor([1, 0, 2, 1, -100, 0])

    def test_by_definition(self) -> None:
        logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).double()
        state = torch.rand(6, 5, generator=torch.Generator().manual_seed(4)).double() / 5
        before = state.clone()
        loss = early_learning_loss(logits, self.target, self.index, state, reduction="none")
        p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        expected = before.clone()
        for example, row in ((4, 2), (2, 3), (0, 5)):
            expected[example] = 0.7 * before[example] + 0.3 * p[row] / p[row].sum()
        assert_matches(state, expected, rtol=1e-13)
        agreement = (expected[self.index] * p).sum(1)
        rows = F.cross_entropy(logits, self.target, reduction="none")
        rows = rows + 3 * (1 - agreement).log()
        rows[4] = 0.0
        assert_matches(loss, rows, rtol=1e-12)

    def test_every_path_updates_alike(self) -> None:
        generator = torch.Generator().manual_seed(5)
        rows, classes, examples = 700, 33, 90
        logits = torch.randn(rows, classes, generator=generator)
        target = torch.randint(classes, (rows,), generator=generator)
        target[::7] = -100
        index = torch.randint(examples, (rows,), generator=generator)
        states = []
        for reduction, grad in (("sum", True), ("sum", False), ("none", True), ("none", False)):
            state = torch.zeros(examples, classes)
            early_learning_loss(
                logits.clone().requires_grad_(grad), target, index, state, reduction=reduction
            )
            states.append(state)
        with robustcore.use_reference():
            forced = torch.zeros(examples, classes)
            early_learning_loss(logits, target, index, forced)
        assert all(torch.equal(states[0], state) for state in states[1:])
        assert_matches(states[0], forced, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("rows", [0, 1, 2, 1000])
    def test_keepers(self, rows: int) -> None:
        generator = torch.Generator().manual_seed(rows)
        examples = max(1, rows // 3)
        index = torch.randint(examples, (rows,), generator=generator)
        target = torch.randint(3, (rows,), generator=generator)
        target[::5] = -100
        last = {int(i): k for k, i in enumerate(index) if int(target[k]) != -100}
        expected = [-1 if int(t) == -100 else last[int(i)] for i, t in zip(index, target)]
        state = torch.zeros(examples, 3)
        arguments = (torch.zeros(rows, 3), None, None, None, None, target, None, None)
        options = ([0.7, 3.0], -100, 0.0, 1.0, 0.0, 0.0, 0)
        _, used, keeper = OPS.early_learning_loss(*arguments, *options, state, index, 0, True, True)
        assert keeper.tolist() == expected
        assert used.shape == (rows, 3)


class TestWhatIsNotWritten:
    def test_evaluation(self) -> None:
        criterion = EarlyLearningLoss(18, 12)
        logits, target, index = batch()
        criterion(logits, target, index)
        before = criterion.state.clone()
        criterion.eval()
        loss = criterion(logits, target, index)
        assert torch.equal(criterion.state, before)
        state = before.clone()
        again = early_learning_loss(logits, target, index, state, update=False)
        assert torch.equal(loss, again)
        assert torch.equal(state, before)

    def test_ignored_rows_whose_index_is_anything(self) -> None:
        logits, target, index = batch()
        target[3], index[3] = -100, -7
        state = torch.zeros(18, 12)
        leaf = logits.requires_grad_()
        early_learning_loss(leaf, target, index, state).backward()
        kept = torch.arange(9) != 3
        assert int((state.sum(1) > 0).sum()) == 8
        assert (state[index[kept]] > 0).all()
        assert leaf.grad is not None
        assert (leaf.grad[3] == 0).all()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("reduction", ["none", "sum"])
    def test_rows_that_are_not_finite(self, value: float, reduction: str) -> None:
        """An overflow that the trainer skips must not stay in the state for ever."""
        logits, target, index = batch()
        logits[2, 5] = value
        for forced in (False, True):
            state = torch.full((18, 12), 0.05)
            with robustcore.use_reference() if forced else torch.enable_grad():
                loss = early_learning_loss(
                    logits.clone().requires_grad_(), target, index, state, reduction=reduction
                )
            assert loss.isnan().any()
            assert (state[index[2]] == 0.05).all()
            assert (state[index[3]] != 0.05).any()

    def test_wrong_index_before_anything_is_written(self) -> None:
        logits, target, index = batch()
        for wrong in (-1, 18, 2**40):
            index[8] = wrong
            for grad in (False, True):
                state = torch.zeros(18, 12)
                with pytest.raises(
                    IndexError, match=r"index must be in \[0, 18\), got .* at row 8"
                ):
                    early_learning_loss(logits.clone().requires_grad_(grad), target, index, state)
                assert (state == 0).all()


class TestRecompute:
    """A training step updates the state once."""

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_activation_checkpointing(self, reentrant: bool, reduction: str) -> None:
        torch.manual_seed(0)
        network = torch.nn.Linear(6, 12)
        x = torch.randn(9, 6, requires_grad=True)
        _, target, index = batch()
        results = []
        for checkpointed in (False, True):
            criterion = EarlyLearningLoss(18, 12, reduction=reduction)
            network.zero_grad()

            def step(x: Tensor, criterion: EarlyLearningLoss = criterion) -> Tensor:
                return criterion(network(x), target, index)

            if checkpointed:
                loss = checkpoint(step, x, use_reentrant=reentrant)
            else:
                loss = step(x)
            loss.sum().backward()
            results.append((loss.detach(), criterion.state, network.weight.grad.clone()))
        assert (results[0][1].sum(1) > 0).sum() == 9
        assert torch.equal(results[0][1], results[1][1])
        assert_matches(results[1][0], results[0][0], rtol=1e-6)
        assert_matches(results[1][2], results[0][2], rtol=1e-5, atol=1e-7)

    def test_backward_after_the_state_has_changed(self) -> None:
        """The gradients of a batch are those of its own forward pass."""
        logits, target, index = batch()
        for reduction in ("mean", "none"):
            state, leaf = torch.zeros(18, 12), logits.clone().requires_grad_()
            loss = early_learning_loss(leaf, target, index, state, reduction=reduction).sum()
            (expected,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            early_learning_loss(-logits, target, index, state)
            assert torch.equal(torch.autograd.grad(loss, leaf)[0], expected)

    def test_a_second_derivative_needs_the_state_unchanged(self) -> None:
        logits, target, index = batch(dtype=torch.float64)
        state, leaf = torch.zeros(18, 12, dtype=torch.float64), logits.requires_grad_()
        loss = early_learning_loss(leaf, target, index, state)
        early_learning_loss(-logits.detach(), target, index, state)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, leaf, create_graph=True)

    def test_second_derivative(self) -> None:
        logits, target, index = batch(dtype=torch.float64)
        target[1] = -100
        results = []
        for function in (early_learning_loss, reference.early_learning_loss):
            state, leaf = torch.zeros(18, 12).double(), logits.clone().requires_grad_()
            loss = function(leaf, target, index, state)
            (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
            results.append(torch.autograd.grad(first.square().sum(), leaf)[0])
        assert_matches(results[0], results[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_in_one_graph_updates(reduction: str) -> None:
    criterion = EarlyLearningLoss(18, 12, reduction=reduction)
    eager = copy.deepcopy(criterion)

    def step(criterion: EarlyLearningLoss, logits: Tensor, *rest: Tensor) -> Tensor:
        return criterion(logits, *rest).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        logits, target, index = batch(seed=seed)
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        actual, expected = compiled(criterion, a, target, index), step(eager, b, target, index)
        assert_matches(actual, expected, rtol=1e-6)
        assert torch.equal(criterion.state, eager.state)
        actual.backward()
        expected.backward()
        assert_matches(a.grad, b.grad, rtol=1e-5, atol=1e-7)


class TestModule:
    def test_state_dict_and_conversion(self) -> None:
        criterion = EarlyLearningLoss(18, 12, label_smoothing=0.1)
        logits, target, index = batch()
        criterion(logits, target, index)
        other = EarlyLearningLoss(18, 12)
        other.load_state_dict(criterion.state_dict())
        assert torch.equal(other.state, criterion.state)
        before = criterion.state.clone()
        criterion.bfloat16()
        assert criterion.state.dtype == torch.float32
        assert torch.equal(criterion.state, before)
        criterion(logits.bfloat16(), target, index)
        assert criterion.double().state.dtype == torch.float64
        criterion(logits.double(), target, index)
        assert criterion.to("meta").state.is_meta

    def test_shards_see_their_own_examples(self) -> None:
        whole = EarlyLearningLoss(18, 12)
        logits, target, index = batch()
        whole(logits, target, index)
        parts = [whole.shard(0, 7), whole.shard(7, 18)]
        assert [p.state.shape[0] for p in parts] == [7, 11]
        losses = whole.eval()
        losses.reduction = "none"
        expected = losses(logits, target, index)
        for part, held in zip(parts, (index < 7, index >= 7)):
            part.eval()
            part.reduction = "none"
            assert torch.equal(part(logits[held], target[held], index[held]), expected[held])
            with pytest.raises(
                IndexError, match=rf"index must be in \[{part.start}, {part.stop}\)"
            ):
                part(logits, target, index)
        parts[1].train()(logits[index >= 7], target[index >= 7], index[index >= 7])
        assert not torch.equal(parts[1].state, whole.state[7:])
        with pytest.raises(ValueError, match=r"start and stop must be in \[7, 18\]"):
            parts[1].shard(0, 10)
        with pytest.raises(TypeError, match=r"^EarlyLearningLoss.shard: stop must be an int"):
            whole.shard(0, 7.0)  # type: ignore[arg-type]

    def test_classes_elsewhere(self) -> None:
        generator = torch.Generator().manual_seed(8)
        logits = torch.randn(2, 5, 3, generator=generator)
        target = torch.randint(5, (2, 3), generator=generator)
        index = torch.arange(6).reshape(2, 3)
        moved, plain = torch.zeros(6, 5), torch.zeros(6, 5)
        loss = early_learning_loss(logits, target, index, moved, dim=1, reduction="none")
        flat = early_learning_loss(
            logits.movedim(1, -1).reshape(6, 5),
            target.flatten(),
            index.flatten(),
            plain,
            reduction="none",
        )
        assert torch.equal(loss, flat.reshape(2, 3))
        assert torch.equal(moved, plain)


def test_bf16_gradient_of_the_true_class() -> None:
    """p_y - 1 is formed in float32: relative error at most 0.5 % at p_y = 0.999."""
    logits = torch.zeros(1, 10, dtype=torch.bfloat16)
    logits[0, 0] = 9.125
    leaf, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    target, index = torch.tensor([0]), torch.tensor([0])
    options: dict[str, Any] = {"strength": 0.0}
    early_learning_loss(leaf, target, index, torch.zeros(1, 10), **options).backward()
    state = torch.zeros(1, 10, dtype=torch.float64)
    reference.early_learning_loss(wide, target, index, state, **options).backward()
    assert leaf.grad is not None
    assert wide.grad is not None
    assert abs(leaf.grad[0, 0].double() / wide.grad[0, 0] - 1) <= 0.005


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": torch.zeros(9)}, TypeError, "index must be int64, got float32"),
        ({"index": torch.zeros(8).long()}, ValueError, r"index must have shape \(9,\), got \(8,\)"),
        ({"state": torch.zeros(18, 12).half()}, TypeError, "state must be float32 for logits of"),
        ({"state": torch.zeros(18, 11)}, ValueError, r"state must have shape \(examples, 12\)"),
        ({"state": torch.zeros(12, 18).t()}, ValueError, "state must be contiguous"),
        ({"state": torch.zeros(18, 12).requires_grad_()}, ValueError, "must not require grad"),
        ({"state": None}, TypeError, "state must be a torch.Tensor, got NoneType"),
        ({"beta": 1.5}, ValueError, r"beta must be in \[0, 1\], got 1.5"),
        ({"strength": -1.0}, ValueError, "strength must be finite and not negative"),
        ({"update": 1}, TypeError, "update must be a bool"),
        ({"start": -1}, ValueError, "start must not be negative"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    logits, target, index = batch()
    given = {"logits": logits, "target": target, "index": index, "state": torch.zeros(18, 12)}
    with pytest.raises(error, match="early_learning_loss: .*" + message):
        early_learning_loss(**{**given, **change})


def test_inside_func_transforms_the_update_is_refused() -> None:
    logits, target, index = batch()
    with pytest.raises(NotImplementedError, match="pass update=False"):
        torch.func.grad(lambda z: early_learning_loss(z, target, index, torch.zeros(18, 12)))(
            logits
        )


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    logits, target, index = batch()
    weight, sample_weight = torch.rand(12) + 0.1, torch.rand(9)
    logits = torch.stack([logits] * 2, 2)[..., 0].requires_grad_(grad)
    for reduction, update in ((0, True), (1, False)):
        common = (logits, None, None, None, None, target, weight, sample_weight)
        options = ([0.7, 3.0], -100, 0.1, 1.5, 8.0, 0.01, reduction)
        state = torch.rand(18, 12) / 12
        forward = OPS.early_learning_loss.default
        torch.library.opcheck(forward, (*common, *options, state, index, 0, update, True))
        used = state[index]
        shape = (9,) if reduction == 0 else ()
        cotangent = torch.rand(shape, requires_grad=grad)
        backward = OPS.early_learning_loss_backward.default
        torch.library.opcheck(backward, (cotangent, *common, *options, used, True, False))
        if reduction and not grad:
            made = OPS.early_learning_loss_with_gradients.default
            torch.library.opcheck(made, (*common, *options, state, index, 0, True, True, False))
    keeper = torch.arange(9)
    torch.library.opcheck(
        OPS.write_state_rows_.default, (torch.zeros(18, 12), index, 0, keeper, torch.rand(9, 12))
    )
