"""Bad input: each a clear error that names the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from robustcore.losses import GatedCrossEntropyLoss, gated_cross_entropy, gated_cross_entropy_scores

F, E, S, Y = torch.randn(8, 5), torch.randn(8, 5), torch.randn(8), torch.randint(5, (8,))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prediction": [1.0]}, TypeError, "prediction must be a torch.Tensor, got list"),
        ({"gate": 0.5}, TypeError, "gate must be a torch.Tensor, got float"),
        ({"target": None}, TypeError, "target must be a torch.Tensor, got NoneType"),
        ({"sample_weight": 2.0}, TypeError, "sample_weight must be a torch.Tensor, got float"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got float"),
        ({"ignore_index": True}, TypeError, "ignore_index must be an int, got bool"),
        ({"ignore_index": 2**70}, ValueError, "ignore_index must fit into 64 bits"),
        ({"dim": 0.5}, TypeError, "dim must be an int, got float"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a float, got str"),
        ({"label_smoothing": torch.tensor(0.1)}, TypeError, "must be a float, got Tensor"),
        ({"reduction": ["mean"]}, TypeError, "reduction must be a str, got list"),
        ({"noise": E.to_sparse()}, TypeError, "noise must be a dense .* got torch.sparse_coo"),
        ({"noise": E.to("meta")}, ValueError, "noise must be on cpu, got meta"),
        ({"target": Y.to("meta")}, ValueError, "target must be on cpu, got meta"),
        (
            {"prediction": F.long(), "noise": E.long()},
            TypeError,
            "prediction must be float32, .*int64",
        ),
        ({"prediction": F.to(torch.complex64)}, TypeError, "prediction must be .*got complex64"),
        (
            {"noise": E.double()},
            TypeError,
            r"noise must have the dtype of prediction \(float32\), got float64",
        ),
        ({"gate": S.long()}, TypeError, "gate must be float32, .* got int64"),
        (
            {"target": Y.int()},
            TypeError,
            "target must hold class indices .*, got int32",
        ),
        ({"noise": E[:, :4]}, ValueError, r"noise must have shape \(8, 5\), got \(8, 4\)"),
        ({"gate": S[:7]}, ValueError, r"gate must have shape \(8,\), got \(7,\)"),
        ({"gate": torch.randn(8, 2)}, ValueError, r"gate must have shape \(8,\), got \(8, 2\)"),
        ({"target": Y[:7]}, ValueError, r"target must have shape \(8,\), got \(7,\)"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have shape \(5,\), got \(4,\)"),
        ({"weight": torch.ones(5).long()}, TypeError, "weight must be float32, .* got int64"),
        ({"weight": torch.ones(5, requires_grad=True)}, ValueError, "weight must not require grad"),
        (
            {"sample_weight": torch.ones(5)},
            ValueError,
            r"sample_weight must have shape \(8,\), got \(5,\)",
        ),
        (
            {"prediction": F[:, :0], "noise": E[:, :0]},
            ValueError,
            r"at least one class, got shape \(8, 0\)",
        ),
        ({"prediction": torch.tensor(1.0)}, ValueError, r"dim must be in \[0, 0\)"),
        ({"dim": 2}, ValueError, r"dim must be in \[-2, 2\) .*, got 2"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        (
            {"label_smoothing": float("nan")},
            ValueError,
            r"label_smoothing must be in \[0, 1\], got nan",
        ),
        (
            {"reduction": "average"},
            ValueError,
            "reduction must be one of 'none', 'mean', 'sum', got 'average'",
        ),
        (
            {"target": torch.full((8,), 5)},
            IndexError,
            r"target must be in \[0, 5\) or ignore_index \(-100\), got 5 at row 0",
        ),
        ({"target": torch.full((8,), -1)}, IndexError, "got -1 at row 0"),
    ],
)
@pytest.mark.parametrize("function", [gated_cross_entropy, gated_cross_entropy_scores])
def test_bad_arguments(function, change, error, message) -> None:
    arguments = {"prediction": F, "noise": E, "gate": S, "target": Y} | change
    with pytest.raises(error, match=message) as caught:
        function(**arguments)
    assert str(caught.value).startswith("gated_cross_entropy")
    assert "\n" not in str(caught.value)


def test_an_error_in_the_forward_pass_leaves_no_trace() -> None:
    f = F.clone().requires_grad_()
    with pytest.raises(IndexError):
        gated_cross_entropy(f, E, S, torch.full((8,), 9))
    gated_cross_entropy(f, E, S, Y).backward()
    assert f.grad is not None


def test_the_module_keeps_its_options() -> None:
    weight = torch.rand(5)
    criterion = GatedCrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.1, reduction="sum")
    expected = gated_cross_entropy(
        F, E, S, Y, weight=weight, ignore_index=2, label_smoothing=0.1, reduction="sum"
    )
    assert torch.equal(criterion(F, E, S, Y), expected)
    assert torch.equal(criterion.scores(F, E, S, Y).loss, expected)
    assert list(criterion.state_dict()) == ["weight"]
    assert "ignore_index=2" in repr(criterion)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"reduction": "avg"}, ValueError),
        ({"label_smoothing": 2.0}, ValueError),
        ({"weight": [1.0]}, TypeError),
        ({"weight": torch.nn.Parameter(torch.ones(5))}, ValueError),
    ],
)
def test_the_module_checks_its_options_at_once(options, error) -> None:
    with pytest.raises(error, match="GatedCrossEntropyLoss: "):
        GatedCrossEntropyLoss(**options)


def test_running_out_of_memory_says_how_much_was_wanted() -> None:
    huge = torch.zeros(1, 1).expand(2**20, 2**28)
    target = torch.zeros(1, dtype=torch.int64).expand(2**20)
    with pytest.raises(RuntimeError, match=r"(allocate|memory)"):
        gated_cross_entropy(huge.requires_grad_(), huge, torch.zeros(1).expand(2**20), target)
