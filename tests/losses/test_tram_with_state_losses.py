"""TRAM with the losses that keep a state per example (ELR, SOP), against plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustcore.losses import TRAM, EarlyLearningLoss, OverParameterizedLoss, PrivilegedHead

E, B, A, P, C = 12, 6, 3, 4, 5  # examples, batch, annotators, privileged features, classes
WEIGHT, BETA, STRENGTH = 0.5, 0.7, 3.0
IGNORED = -100
LEAST = 1e-4


def elr() -> EarlyLearningLoss:
    return EarlyLearningLoss(E, C, beta=BETA, strength=STRENGTH)


def sop() -> OverParameterizedLoss:
    criterion = OverParameterizedLoss(E, C)
    with torch.no_grad():
        # Of order one, some beyond the bound of their squares: as they are late in training.
        criterion.u.uniform_(-1.2, 1.2)
        criterion.v.uniform_(-1.2, 1.2)
    return criterion


CRITERIA: dict[str, Callable[[], nn.Module | None]] = {
    "cross-entropy": lambda: None,
    "elr": elr,
    "sop": sop,
}
PAIRS = [
    ("elr", "cross-entropy"),
    ("sop", "cross-entropy"),
    ("cross-entropy", "elr"),
    ("cross-entropy", "sop"),
    ("elr", "sop"),
    ("sop", "sop"),
]
over_pairs = pytest.mark.parametrize(("loss", "privileged_loss"), PAIRS)
with_state = pytest.mark.parametrize("loss", ["elr", "sop"])


def model(loss: str, privileged_loss: str, dtype: torch.dtype = torch.float64, **options) -> TRAM:
    torch.manual_seed(1)
    tram = TRAM(
        nn.Sequential(nn.Linear(7, 8), nn.Tanh()),
        nn.Linear(8, C),
        PrivilegedHead(8, P + options.get("random_features", 0), C, width=16),
        weight=WEIGHT,
        loss=CRITERIA[loss](),
        privileged_loss=CRITERIA[privileged_loss](),
        **options,
    )
    return tram.to(dtype)


def batches(
    steps: int, annotators: bool, dtype: torch.dtype = torch.float64
) -> Iterator[dict[str, Any]]:
    """Different examples at each step, some of them again; some labels missing."""
    generator = torch.Generator().manual_seed(2)
    shape = (B, A) if annotators else (B,)
    for _ in range(steps):
        target = torch.randint(C, shape, generator=generator)
        target[1, ...] = IGNORED  # an example without any label
        if annotators:
            target[2, 2] = target[3, 0] = IGNORED
        yield {
            "x": 2 * torch.randn(B, 7, generator=generator, dtype=dtype),
            "privileged": torch.randn(*shape, P, generator=generator, dtype=dtype),
            "target": target,
            "index": torch.randperm(E, generator=generator)[:B],
        }


class Plain:
    """The same composition written out, row by row where a state is concerned."""

    def __init__(self, tram: TRAM) -> None:
        self.modules = copy.deepcopy(tram)

    def terms(
        self, x: Tensor, privileged: Tensor, target: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        features = self.modules.backbone(x)
        if target.dim() == 2:
            features, index = (t.repeat_interleave(A, 0) for t in (features, index))
            privileged, target = privileged.reshape(-1, P), target.flatten()
        kept = target != IGNORED
        plain = self.modules.head(features.detach())
        explained = self.modules.privileged_head(features, privileged)
        return (
            self.loss(self.modules.head_criterion, plain[kept], target[kept], index[kept]),
            self.loss(
                self.modules.privileged_criterion, explained[kept], target[kept], index[kept]
            ),
        )

    @staticmethod
    def loss(criterion: Any, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        p = logits.softmax(-1)
        label = F.one_hot(target, C)
        if isinstance(criterion, EarlyLearningLoss):
            p = p.clamp(LEAST, 1 - LEAST)
            state, before = criterion.state, criterion.state.clone()
            for row, example in enumerate(index.tolist()):  # the last row of an example stays
                mean = p[row].detach() / p[row].detach().sum()
                state[example] = BETA * before[example] + (1 - BETA) * mean
            agreement = (state[index].clone() * p).sum(-1)
            return F.cross_entropy(logits, target) + STRENGTH * (1 - agreement).log().mean()
        if isinstance(criterion, OverParameterizedLoss):
            gain = (criterion.u[index] ** 2 * label).clamp(0, 1)
            lost = (criterion.v[index] ** 2 * (1 - label)).clamp(0, 1)
            q = (p + gain - lost.detach()).clamp_min(LEAST)
            q = (q / q.sum(-1, keepdim=True)).clamp_min(LEAST)
            chosen = F.one_hot(logits.argmax(-1), C)
            distance = (chosen + gain - lost - label).square().sum(-1)
            return (distance - (label * q.log()).sum(-1)).mean()
        return F.cross_entropy(logits, target)


def dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


@over_pairs
@pytest.mark.parametrize("annotators", [False, True])
def test_training_is_that_of_the_plain_composition(loss, privileged_loss, annotators) -> None:
    """Loss, every gradient and every state over several steps, in float64."""
    tram = model(loss, privileged_loss)
    plain = Plain(tram)
    optimizers = [torch.optim.SGD(m.parameters(), 0.3) for m in (tram, plain.modules)]
    for batch in batches(4, annotators):
        for optimizer in optimizers:
            optimizer.zero_grad()
        result = tram.loss(**batch)
        of_head, of_privileged = plain.terms(**batch)
        expected = WEIGHT * of_head + of_privileged
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        result.backward()
        expected.backward()
        wanted = dict(plain.modules.named_parameters())
        for name, parameter in tram.named_parameters():
            gradient = dense(parameter.grad)
            assert gradient is not None, name
            torch.testing.assert_close(gradient, wanted[name].grad, rtol=1e-11, atol=1e-12)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(
            tram.state_dict(), plain.modules.state_dict(), rtol=1e-11, atol=1e-12
        )


@over_pairs
def test_features_learn_from_the_privileged_head_alone(loss, privileged_loss) -> None:
    tram = model(loss, privileged_loss)
    plain = Plain(tram)
    [batch] = batches(1, annotators=False)
    tram.loss(**batch).backward()
    of_head, of_privileged = plain.terms(**batch)
    # Parts of the module by the only term that may reach them, with its weight.
    for term, weight, parts in (
        (of_head, WEIGHT, ("head", "head_criterion")),
        (of_privileged, 1.0, ("backbone", "privileged_head", "privileged_criterion")),
    ):
        for part in parts:
            got = getattr(tram, part)
            if not isinstance(got, nn.Module) or not list(got.parameters()):
                continue
            alone = torch.autograd.grad(
                term, list(getattr(plain.modules, part).parameters()), retain_graph=True
            )
            for parameter, expected in zip(got.parameters(), alone, strict=True):
                assert expected.abs().sum() > 0
                torch.testing.assert_close(
                    dense(parameter.grad), weight * expected, rtol=1e-11, atol=1e-12
                )


@with_state
def test_no_gradient_from_the_other_head(loss) -> None:
    """Without the privileged head's term nothing is left for the features."""

    def nothing(logits: Tensor, target: Tensor) -> Tensor:
        return logits.sum() * 0

    tram = model(loss, "cross-entropy")
    tram.privileged_criterion = nothing
    [batch] = batches(1, annotators=False)
    tram.loss(**batch).backward()
    for parameter in (*tram.backbone.parameters(), *tram.privileged_head.parameters()):
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(parameter.grad.any() for parameter in tram.head.parameters())


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_state_of_elr_is_updated_once_per_step(recomputed) -> None:
    tram = model("elr", "elr")
    criteria = tram.head_criterion, tram.privileged_criterion
    [batch] = batches(1, annotators=False)
    kept = batch["target"] != IGNORED
    rows = batch["index"][kept]
    with torch.no_grad():
        features = tram.backbone(batch["x"])
        logits = tram.head(features), tram.privileged_head(features, batch["privileged"])
    if recomputed:
        loss = checkpoint(tram.loss, **batch, use_reentrant=False)
    else:
        loss = tram.loss(**batch)
    loss.backward()
    others = torch.ones(E, dtype=torch.bool).index_fill(0, rows, False)
    after = [criterion.state.clone() for criterion in criteria]
    for state, one in zip(after, logits):
        p = one[kept].softmax(-1).clamp(LEAST, 1 - LEAST)
        torch.testing.assert_close(state[rows], (1 - BETA) * p / p.sum(-1, keepdim=True))
        assert not state[others].any()
    # Neither a prediction nor an evaluation of the loss is a step.
    tram(batch["x"])
    tram.eval()
    tram.loss(**batch)
    assert all(torch.equal(criterion.state, state) for criterion, state in zip(criteria, after))


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_parameters_of_sop_are_moved_once_per_step(recomputed) -> None:
    tram = model("sop", "sop")
    plain = Plain(tram)
    [batch] = batches(1, annotators=False)
    kept = batch["index"][batch["target"] != IGNORED]
    others = torch.ones(E, dtype=torch.bool).index_fill(0, kept, False)
    rates = {"u": 1.0, "v": 10.0}
    for term, weight, name in zip(
        plain.terms(**batch), (WEIGHT, 1.0), ("head_criterion", "privileged_criterion")
    ):
        (weight * term).backward()
        expected = getattr(plain.modules, name)
        with torch.no_grad():
            for key, rate in rates.items():
                getattr(expected, key).sub_(rate * getattr(expected, key).grad)
    criteria = tram.head_criterion, tram.privileged_criterion
    before = [criterion.v.detach().clone() for criterion in criteria]
    optimizer = torch.optim.SGD(
        [group for c in criteria for group in c.parameter_groups(rates["u"], rates["v"])]
    )
    if recomputed:
        checkpoint(tram.loss, **batch, use_reentrant=False).backward()
    else:
        tram.loss(**batch).backward()
    assert all(p.grad.is_sparse for c in criteria for p in (c.u, c.v))
    optimizer.step()
    for name, old in zip(("head_criterion", "privileged_criterion"), before):
        got, wanted = getattr(tram, name), getattr(plain.modules, name)
        torch.testing.assert_close(got.state_dict(), wanted.state_dict(), rtol=1e-11, atol=1e-12)
        assert torch.equal(got.v[others], old[others])
        assert not torch.equal(got.v[kept], old[kept])


@over_pairs
@pytest.mark.parametrize("random_features", [0, 3])
def test_a_checkpoint_continues_with_the_same_bits(loss, privileged_loss, random_features) -> None:
    def train(tram: TRAM, some: list[dict[str, Any]]) -> list[float]:
        optimizer = torch.optim.SGD(tram.parameters(), 0.3)
        losses = []
        for batch in some:
            optimizer.zero_grad()
            result = tram.loss(**batch)
            result.backward()
            optimizer.step()
            losses.append(result.item())
        return losses

    options = {"dtype": torch.float32, "random_features": random_features}
    steps = list(batches(5, annotators=True, dtype=torch.float32))
    tram = model(loss, privileged_loss, **options)
    train(tram, steps[:3])
    saved = copy.deepcopy(tram.state_dict())
    for place, name in (("head", loss), ("privileged", privileged_loss)):
        for key in {"elr": ("state",), "sop": ("u", "v")}.get(name, ()):
            assert saved[f"{place}_criterion.{key}"].any()
    fresh = model(loss, privileged_loss, **options)
    with torch.no_grad():
        for value in (*fresh.parameters(), *fresh.buffers()):
            value.fill_(0.5)
    assert fresh.load_state_dict(saved).missing_keys == []
    assert train(fresh, steps[3:]) == train(tram, steps[3:])
    again = fresh.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in tram.state_dict().items())


@with_state
def test_an_example_outside_the_state_is_an_error(loss) -> None:
    tram = model(loss, "cross-entropy")
    [batch] = batches(1, annotators=False)
    batch["index"][0] = E
    with pytest.raises(IndexError, match=rf"index must be in \[0, {E}\), got {E}"):
        tram.loss(**batch)
    del batch["index"]
    with pytest.raises(TypeError, match="index"):
        tram.loss(**batch)
