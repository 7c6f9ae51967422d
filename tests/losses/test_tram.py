"""TRAM, TRAM++, AFM and the heteroscedastic head."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustcore.losses import (
    AFM,
    TRAM,
    EarlyLearningLoss,
    HeteroscedasticHead,
    PrivilegedHead,
    heteroscedastic_cross_entropy,
    random_privileged_information,
)

B, A, P, C = 6, 2, 4, 3


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "x": torch.randn(B, 5),
        "privileged": torch.randn(B, P),
        "target": torch.randint(C, (B,)),
        "index": torch.tensor([3, 0, 9, 4, 7, 1]),
    }


def model(**options) -> TRAM:
    torch.manual_seed(1)
    extra = options.get("random_features", 0)
    return TRAM(
        nn.Linear(5, 8), nn.Linear(8, C), PrivilegedHead(8, P + extra, C, width=16), **options
    )


class Remembering(nn.Module):
    """A criterion with a state per example, like those of ELR and SOP."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(examples))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self, logits: torch.Tensor, target: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            self.seen[index] += 1
        return self.scale * F.cross_entropy(logits, target)


class TestTRAM:
    def test_only_the_privileged_head_trains_the_backbone(self, batch) -> None:
        tram = model(weight=0.5)
        x, a, y = batch["x"], batch["privileged"], batch["target"]
        loss = tram.loss(x, a, y)
        features = tram.backbone(x)
        plain = F.cross_entropy(tram.head(features.detach()), y)
        explained = F.cross_entropy(tram.privileged_head(features, a), y)
        torch.testing.assert_close(loss, 0.5 * plain + explained)
        (through,) = torch.autograd.grad(loss, tram.backbone.weight, retain_graph=True)
        (expected,) = torch.autograd.grad(explained, tram.backbone.weight)
        torch.testing.assert_close(through, expected)
        (of_head,) = torch.autograd.grad(loss, tram.head.weight)
        assert of_head.abs().sum() > 0
        assert torch.equal(tram(x), tram.head(tram.backbone(x)))

    def test_several_annotators_are_flattened_and_missing_ones_ignored(self, batch) -> None:
        tram = model()
        a, y = torch.randn(B, A, P), torch.randint(C, (B, A))
        y[2, 1] = -100
        loss = tram.loss(batch["x"], a, y)
        features = tram.backbone(batch["x"])
        twice = features.repeat_interleave(A, 0)
        expected = F.cross_entropy(tram.head(twice), y.flatten()) + F.cross_entropy(
            tram.privileged_head(twice, a.flatten(0, 1)), y.flatten()
        )
        torch.testing.assert_close(loss, expected)

    def test_a_head_of_the_user_gets_expanded_features(self, batch) -> None:
        class Concatenating(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(8 + P, C)

            def forward(self, features, privileged):
                return self.layer(torch.cat([features, privileged], -1))

        tram = TRAM(nn.Linear(5, 8), nn.Linear(8, C), Concatenating())
        tram.loss(batch["x"], torch.randn(B, A, P), torch.randint(C, (B, A))).backward()
        tram.loss(batch["x"], batch["privileged"], batch["target"]).backward()

    @pytest.mark.parametrize("annotators", [None, A])
    def test_tram_plus_plus_appends_the_random_vectors(self, batch, annotators) -> None:
        tram = model(random_features=3, random_seed=5)
        index, shape = batch["index"], (B,) if annotators is None else (B, A)
        a, y = torch.randn(*shape, P), torch.randint(C, shape)
        loss = tram.loss(batch["x"], a, y, index=index)
        vectors = random_privileged_information(index, annotators, features=3, seed=5)
        plain = TRAM(tram.backbone, tram.head, tram.privileged_head)
        expected = plain.loss(batch["x"], torch.cat([a, vectors], -1), y)
        assert torch.equal(loss, expected)
        if annotators:
            ids = torch.arange(A).expand(B, A)
            again = tram.loss(batch["x"], a, y, index=index, annotators=ids)
            assert torch.equal(loss, again)

    @pytest.mark.parametrize("random_features", [0, 3])
    def test_criteria_with_a_state_per_example(self, batch, random_features: int) -> None:
        own = [Remembering(10), Remembering(10)]
        tram = model(loss=own[0], privileged_loss=own[1], random_features=random_features)
        tram.loss(**batch).backward()
        for criterion in own:
            assert criterion.seen[batch["index"]].eq(1).all()
            assert criterion.seen.sum() == B
            assert criterion.scale.grad is not None
        assert "head_criterion.seen" in tram.state_dict()
        # One head only; the other's cross-entropy does not know of an index.
        tram = model(loss=Remembering(10), random_features=random_features)
        tram.loss(**batch).backward()
        assert tram.head_criterion.seen.sum() == B

    def test_an_index_is_repeated_for_the_annotators(self, batch) -> None:
        seen = {}

        def criterion(logits, target, index, other, constant):
            seen.update(index=index, other=other, constant=constant)
            return F.cross_entropy(logits, target)

        tram = model(privileged_loss=criterion)
        other, constant = torch.rand(B, A), torch.rand(C)
        tram.loss(
            batch["x"],
            torch.randn(B, A, P),
            torch.randint(C, (B, A)),
            index=batch["index"],
            other=other,
            constant=constant,
        )
        assert torch.equal(seen["index"], batch["index"].repeat_interleave(A))
        assert torch.equal(seen["other"], other.flatten())
        assert seen["constant"] is constant

    def test_a_heteroscedastic_criterion(self, batch) -> None:
        """The head's output is the criterion's business, tensors or not."""
        head = HeteroscedasticHead(8, C, rank=2, samples=20)

        class Distribution(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = head

            def forward(self, features):
                return self.head.logits(features)

        tram = TRAM(
            nn.Linear(5, 8),
            Distribution(),
            PrivilegedHead(8, P, C),
            loss=lambda logits, target, seed: heteroscedastic_cross_entropy(
                *logits, target, samples=20, seed=seed
            ),
        )
        loss = tram.loss(batch["x"], batch["privileged"], batch["target"], seed=3)
        loss.backward()
        assert head.low_rank.weight.grad.abs().sum() > 0

    def test_it_learns_labels_that_an_annotator_flips(self) -> None:
        """Annotator 1 always answers class 0: the head without privileged information does not."""
        torch.manual_seed(3)
        x = torch.randn(300, 5)
        truth = (x[:, 0] > 0).long()
        annotator = torch.rand(300) < 0.45
        noisy = truth.masked_fill(annotator, 0)
        privileged = F.one_hot(annotator.long(), 2).float()
        tram = TRAM(nn.Linear(5, 8), nn.Linear(8, 2), PrivilegedHead(8, 2, 2, width=16))
        afm = AFM(nn.Linear(5, 8), PrivilegedHead(8, 2, 2, width=16), draws=None)
        for network in (tram, afm):
            optimizer = torch.optim.Adam(network.parameters(), 0.05)
            for _ in range(70):
                optimizer.zero_grad()
                network.loss(x, privileged, noisy).backward()
                optimizer.step()
        with torch.no_grad():
            features = tram.backbone(x)
            honest = tram.privileged_head(features, torch.tensor([1.0, 0.0]))
            assert (honest.argmax(1) == truth).float().mean() > 0.97
            assert tram.privileged_head(features, privileged)[annotator].argmax(1).eq(0).all()
        afm.remember(privileged)
        expected = 0.55 * (truth == 1)  # what the noisy labels say about class 1
        assert (afm(x).exp()[:, 1] - expected).abs().mean() < 0.1

    def test_compile(self, batch) -> None:
        tram = model(random_features=2)
        loss = torch.compile(tram.loss, fullgraph=True)(**batch)
        torch.testing.assert_close(loss, tram.loss(**batch))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"privileged": torch.randn(B + 1, P)}, ValueError, "privileged must have shape"),
            ({"privileged": [1.0]}, TypeError, "privileged must be a torch.Tensor, got list"),
            ({"target": 3}, TypeError, "target must be a torch.Tensor, got int"),
            ({"indices": torch.arange(B)}, TypeError, "no criterion takes an option 'indices'"),
            ({"index": None}, TypeError, "index must be given for random_features, got None"),
        ],
    )
    def test_errors(self, batch, change: dict, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"^TRAM.loss: {message}"):
            model(random_features=2).loss(**{**batch, **change})

    def test_errors_of_the_constructor(self) -> None:
        with pytest.raises(TypeError, match=r"^TRAM: backbone must be a torch.nn.Module, got int"):
            TRAM(1, nn.Linear(1, 1), nn.Linear(1, 1))
        with pytest.raises(TypeError, match=r"^TRAM: loss must be a callable"):
            model(loss=3)
        with pytest.raises(TypeError, match=r"^TRAM: weight must be a float, got bool"):
            model(weight=True)
        with pytest.raises(ValueError, match=r"^TRAM: weight must be finite, got nan"):
            model(weight=math.nan)
        stateful = EarlyLearningLoss(B, C)
        with pytest.raises(ValueError, match=r"^TRAM: loss and privileged_loss must be two crit"):
            model(loss=stateful, privileged_loss=stateful)
        stateless = nn.CrossEntropyLoss()
        model(loss=stateless, privileged_loss=stateless)
        model(loss=stateful, privileged_loss=EarlyLearningLoss(B, C))
        with pytest.raises(ValueError, match=r"^TRAM: random_features must not be negative"):
            TRAM(nn.Identity(), nn.Identity(), nn.Identity(), random_features=-1)


class TestAFM:
    def network(self, **options) -> AFM:
        torch.manual_seed(2)
        return AFM(nn.Linear(5, 8), PrivilegedHead(8, P, C), **options)

    def test_marginalises_over_every_stored_row(self, batch) -> None:
        stored = torch.randn(4, 5, P)
        rows = stored.reshape(-1, P)
        for chunk in (1, 7, 64):
            afm = self.network(draws=None, chunk=chunk)
            afm.remember(stored)
            features = afm.backbone(batch["x"])
            every = torch.stack([afm.privileged_head(features, row).softmax(-1) for row in rows])
            torch.testing.assert_close(afm(batch["x"]), every.mean(0).log())

    def test_draws_are_reproducible_and_converge(self, batch) -> None:
        afm = self.network(draws=2000, chunk=512)
        afm.remember(torch.randn(50, P))
        first = afm(batch["x"], generator=torch.Generator().manual_seed(4))
        assert torch.equal(first, afm(batch["x"], generator=torch.Generator().manual_seed(4)))
        afm.draws = None
        assert (first.exp() - afm(batch["x"]).exp()).abs().max() < 0.05

    def test_loss_and_criterion(self, batch) -> None:
        x, a, y = batch["x"], batch["privileged"], batch["target"]
        afm = self.network()
        logits = afm.privileged_head(afm.backbone(x), a)
        torch.testing.assert_close(afm.loss(x, a, y), F.cross_entropy(logits, y))
        torch.testing.assert_close(
            afm.loss(x, a, y, label_smoothing=0.1), F.cross_entropy(logits, y, label_smoothing=0.1)
        )
        afm = self.network(loss=Remembering(10))
        afm.loss(x, torch.randn(B, A, P), torch.randint(C, (B, A)), index=batch["index"])
        assert afm.criterion.seen.sum() == B

    def test_the_checkpoint_carries_the_stored_rows(self, batch) -> None:
        afm, other = self.network(draws=None), self.network(draws=None)
        afm.remember(torch.randn(9, P))
        other.load_state_dict(afm.state_dict())
        assert torch.equal(afm(batch["x"]), other(batch["x"]))

    def test_errors(self, batch) -> None:
        afm = self.network()
        with pytest.raises(RuntimeError, match=r"^AFM: call remember"):
            afm(batch["x"])
        with pytest.raises(ValueError, match=r"^AFM.remember: privileged must have at least one"):
            afm.remember(torch.empty(0, P))
        with pytest.raises(ValueError, match=r"^AFM.loss: privileged must have shape"):
            afm.loss(batch["x"], torch.randn(B + 1, P), batch["target"])
        with pytest.raises(TypeError, match=r"^AFM.loss: no criterion takes an option 'index'"):
            afm.loss(batch["x"], batch["privileged"], batch["target"], index=batch["index"])
        with pytest.raises(ValueError, match=r"^AFM: chunk must be positive, got 0"):
            self.network(chunk=0)


class TestHeteroscedasticHead:
    def test_loss_is_that_of_its_logits(self) -> None:
        head = HeteroscedasticHead(5, C, rank=2, temperature=1.5, samples=30)
        x, y = torch.randn(B, 5), torch.randint(C, (B,))
        logits = head.logits(x)
        assert logits.low_rank.shape == (B, C, 2)
        assert (logits.diagonal >= 1e-3).all()
        loss = head.loss(x, y, seed=1, reduction="sum")
        expected = heteroscedastic_cross_entropy(
            *logits, y, temperature=1.5, samples=30, seed=1, reduction="sum"
        )
        assert torch.equal(loss, expected)
        loss.backward()
        for parameter in head.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
        assert torch.equal(head(x, seed=4), head(x, seed=4))

    def test_rank_zero_and_errors(self) -> None:
        head = HeteroscedasticHead(5, C, rank=0, samples=8)
        head.loss(torch.randn(2, 4, 5), torch.randint(C, (2, 4))).backward()
        assert head(torch.randn(2, 4, 5)).shape == (2, 4, C)
        with pytest.raises(ValueError, match=r"^HeteroscedasticHead: rank must be at least 0"):
            HeteroscedasticHead(5, C, rank=-1)
        with pytest.raises(ValueError, match=r"^HeteroscedasticHead: temperature must be positive"):
            HeteroscedasticHead(5, C, temperature=-1.0)
