"""linear_gated_cross_entropy: its module, and bad input."""

from __future__ import annotations

import pytest
import torch
from losses.test_linear_gated_cross_entropy import problem

from robustcore.losses import (
    LinearGatedCrossEntropyLoss,
    linear_gated_cross_entropy,
)


class TestModule:
    def test_it_is_the_function_of_its_heads(self) -> None:
        weight = torch.rand(7)
        options = {
            "ignore_index": 2,
            "label_smoothing": 0.1,
            "temperature": 1.5,
            "softcap": 9.0,
            "lse_square_scale": 0.01,
            "reduction": "sum",
            "chunk_rows": 4,
        }
        heads = torch.nn.Linear(5, 7), torch.nn.Linear(6, 7, bias=False)
        module = LinearGatedCrossEntropyLoss(*heads, weight, **options)
        (x, _, _, noise_x, _, _, gate), target = problem()
        loss = module(x, noise_x, gate, target)
        expected = linear_gated_cross_entropy(
            x,
            heads[0].weight,
            heads[0].bias,
            noise_x,
            heads[1].weight,
            None,
            gate,
            target,
            class_weight=weight,
            **options,
        )
        assert torch.equal(loss, expected)
        loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        assert len(list(module.parameters())) == 3
        assert "class_weight" in module.state_dict()
        for shown in ("chunk_rows=4", "temperature=1.5", "softcap=9.0", "lse_square_scale=0.01"):
            assert shown in repr(module)

    @pytest.mark.parametrize(
        ("arguments", "options", "error", "message"),
        [
            ((torch.relu, torch.nn.Linear(2, 3)), {}, TypeError, "prediction_head must be a torch"),
            ((torch.nn.Linear(2, 3), None), {}, TypeError, "noise_head must be a torch.nn.Linear"),
            (
                (torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)),
                {},
                ValueError,
                "noise_head must have 3 output features, got 4",
            ),
            (
                (torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)),
                {"reduction": "avg"},
                ValueError,
                "reduction must be one of",
            ),
            (
                (torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)),
                {"softcap": 0.0},
                ValueError,
                "softcap must be positive and finite, or None, got 0.0",
            ),
        ],
    )
    def test_it_checks_at_once(self, arguments, options, error, message) -> None:
        with pytest.raises(error, match=f"LinearGatedCrossEntropyLoss: {message}"):
            LinearGatedCrossEntropyLoss(*arguments, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": [1.0]}, TypeError, "features must be a torch.Tensor, got list"),
        ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
        ({"bias": 0.0}, TypeError, "bias must be a torch.Tensor, got float"),
        ({"gate": 0.5}, TypeError, "gate must be a torch.Tensor, got float"),
        ({"chunk_rows": 2.0}, TypeError, "chunk_rows must be an int, got float"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows must be positive or None, got 0"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got float"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive and finite, or None, got -1.0"),
        ({"lse_square_scale": "1"}, TypeError, "lse_square_scale must be a float, got str"),
        (
            {"noise_weight": torch.ones(7, 6, device="meta")},
            ValueError,
            "noise_weight must be on cpu, got meta",
        ),
        ({"features": torch.ones(12, 5).long()}, TypeError, "features must be float32, .*int64"),
        (
            {"noise_bias": torch.ones(7).double()},
            TypeError,
            r"noise_bias must have the dtype of features \(float32\), got float64",
        ),
        ({"target": torch.ones(12).int()}, TypeError, "target must hold class indices .*int32"),
        (
            {"target": torch.ones(12)},
            ValueError,
            r"target must have shape \(12, 7\), got \(12,\)",
        ),
        (
            {"target": torch.ones(12, 6)},
            ValueError,
            r"target must have shape \(12, 7\), got \(12, 6\)",
        ),
        (
            {"target": torch.ones(12, 7, requires_grad=True)},
            ValueError,
            "target must not require grad, but does",
        ),
        (
            {"features": torch.ones(11, 5)},
            ValueError,
            r"features must have shape \(12, D\) for rows of shape \(12,\), got \(11, 5\)",
        ),
        (
            {"weight": torch.ones(7, 4)},
            ValueError,
            r"weight must have shape \(C, 5\), got \(7, 4\)",
        ),
        (
            {"noise_weight": torch.ones(8, 6)},
            ValueError,
            r"noise_weight must have shape \(7, 6\), got \(8, 6\)",
        ),
        ({"weight": torch.ones(0, 5)}, ValueError, r"at least one class, got shape \(0, 5\)"),
        ({"bias": torch.ones(6)}, ValueError, r"bias must have shape \(7,\), got \(6,\)"),
        ({"gate": torch.ones(11)}, ValueError, r"gate must have shape \(12,\), got \(11,\)"),
        (
            {"sample_weight": torch.ones(11)},
            ValueError,
            r"sample_weight must have shape \(12,\), got \(11,\)",
        ),
        (
            {"class_weight": torch.ones(7, requires_grad=True)},
            ValueError,
            "class_weight must not require grad",
        ),
    ],
)
def test_bad_arguments(change, error, message) -> None:
    names = ("features", "weight", "bias", "noise_features", "noise_weight", "noise_bias", "gate")
    leaves, target = problem()
    arguments = dict(zip(names, leaves)) | {"target": target} | change
    with pytest.raises(error, match=message) as caught:
        linear_gated_cross_entropy(**arguments)
    assert str(caught.value).startswith("linear_gated_cross_entropy: ")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 5])
@pytest.mark.parametrize("value", [7, -1])
def test_a_target_out_of_range_is_named_with_its_row(value, chunk_rows, grad) -> None:
    leaves, target = problem()
    target[8] = value
    message = rf"target must be in \[0, 7\) or ignore_index \(-100\), got {value} at row 8"
    with torch.set_grad_enabled(grad), pytest.raises(IndexError, match=message) as caught:
        linear_gated_cross_entropy(
            *leaves, target, chunk_rows=chunk_rows, class_weight=torch.ones(7)
        )
    assert str(caught.value).startswith("linear_gated_cross_entropy: ")
