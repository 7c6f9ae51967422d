"""The PiDUAL module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustcore.losses import PiDUAL, gated_cross_entropy


@pytest.fixture
def model() -> PiDUAL:
    return PiDUAL(nn.Linear(6, 3), nn.Linear(4, 3), nn.Linear(4, 1))


X, PRIVILEGED, TARGET = torch.randn(7, 6), torch.randn(7, 4), torch.arange(7) % 3


def test_loss_is_the_gated_loss_of_its_networks(model: PiDUAL) -> None:
    loss = model.loss(X, PRIVILEGED, TARGET, label_smoothing=0.1)
    expected = gated_cross_entropy(
        model.backbone(X),
        model.noise_network(PRIVILEGED),
        model.gate_network(PRIVILEGED).squeeze(1),
        TARGET,
        label_smoothing=0.1,
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_at_test_time_the_backbone_alone_is_used(model: PiDUAL) -> None:
    assert torch.equal(model(X), model.backbone(X))


def test_noise_scores(model: PiDUAL) -> None:
    scores = model.noise_scores(X, PRIVILEGED, TARGET)
    log_softmax = model.backbone(X).log_softmax(1)
    torch.testing.assert_close(scores.log_probability, log_softmax[torch.arange(7), TARGET])
    assert torch.equal(scores.predicted, log_softmax.argmax(1))
    torch.testing.assert_close(scores.gate, model.gate_network(PRIVILEGED).squeeze(1).sigmoid())
    assert not any(score.requires_grad for score in scores)


def test_training_separates_wrong_labels() -> None:
    """Labels of a bad annotator are wrong; the annotator is the privileged information."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=generator)
    clean = (x[:, 0] > 0).long()
    bad = torch.rand(600, generator=generator) < 0.4
    noisy = torch.where(bad, 1 - clean, clean)
    privileged = torch.stack([bad.float(), torch.randn(600, generator=generator)], 1)
    model = PiDUAL(
        nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)),
        nn.Linear(2, 2),
        nn.Linear(2, 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(x, privileged, noisy).backward()
        optimizer.step()
    scores = model.noise_scores(x, privileged, noisy)
    assert (model(x).argmax(1) == clean).float().mean() > 0.95
    assert scores.log_probability[bad].median() < scores.log_probability[~bad].median()
    assert scores.gate[bad].median() > scores.gate[~bad].median()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_networks_must_be_modules(position: int) -> None:
    networks: list = [nn.Linear(1, 1)] * 3
    networks[position] = torch.relu
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got"):
        PiDUAL(*networks)
