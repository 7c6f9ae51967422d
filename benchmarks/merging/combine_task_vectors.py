"""combine_task_vectors: a base and T task vectors with learned coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size
from ..targets import Target
from .models import LARGE_PARAMETERS, random_model

_LARGE = "T=8, P=22.7 million"
_PASSES = ("forward", "forward+backward")

State = dict[str, Tensor]


def operator(base: State, vectors: list[State], coefficients: Tensor) -> list[Tensor]:
    from robustcore.merging import combine_task_vectors

    return list(combine_task_vectors(base, vectors, coefficients).values())


def eager(base: State, vectors: list[State], coefficients: Tensor) -> list[Tensor]:
    """Scaled vectors added up, tensor by tensor."""
    results = []
    for index, (key, start) in enumerate(base.items()):
        total = coefficients[0, index] * vectors[0][key]
        for vector, row in zip(vectors[1:], coefficients[1:], strict=True):
            total = total + row[index] * vector[key]
        results.append(start + total)
    return results


def stacked(base: State, rows: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    """One product of a vector and a matrix for each tensor."""
    return [
        start + coefficients[:, index] @ matrix
        for index, (start, matrix) in enumerate(zip(base.values(), rows, strict=True))
    ]


def _stack(inputs: Inputs) -> Inputs:
    base, vectors, coefficients = inputs.arguments
    rows = [torch.stack([vector[key] for vector in vectors]) for key in base]
    return Inputs((base, rows, coefficients), inputs.leaves, inputs.grad_output)


class CombineTaskVectors(Benchmark):
    family = "merging"
    operator = "combine_task_vectors"
    passes = _PASSES
    sizes = (
        Size("T=4, P=65536", {"tasks": 4, "parameters": 65536}, "small", quick=True),
        Size("T=4, P=1 million", {"tasks": 4, "parameters": 1_000_000}, "medium", quick=True),
        Size(_LARGE, {"tasks": 8, "parameters": LARGE_PARAMETERS}, "large"),
    )
    targets = (
        *(
            Target(f"{passes}: at least as fast as eager", "speedup:eager", 1.0, size.label, passes)
            for size in sizes
            for passes in _PASSES
        ),
        Target(
            "extra memory: 1.05 times the result and 64 MiB",
            "extra_bytes",
            1.05 * 4 * LARGE_PARAMETERS + (64 << 20),
            _LARGE,
            "forward+backward",
            at_least=False,
        ),
        Target("no less exact than 4 times eager", "error_ratio", 4.0, at_least=False, device=""),
        *(
            Target(
                "at least 80 % of the copy bandwidth",
                "fraction_of_copy",
                0.8,
                _LARGE,
                passes,
                device="cuda",
            )
            for passes in _PASSES
        ),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        tasks, parameters = case.size.dimensions["tasks"], case.size.dimensions["parameters"]
        generator = torch.Generator(case.device).manual_seed(seed)
        base = random_model(parameters, generator, case.device)
        vectors = [random_model(parameters, generator, case.device, 0.002) for _ in range(tasks)]
        coefficients = torch.rand((tasks, len(base)), generator=generator, device=case.device)
        if not case.with_backward:
            return Inputs((base, vectors, coefficients))
        coefficients.requires_grad_()
        grads: Any = [
            torch.randn(tensor.shape, generator=generator, device=case.device)
            for tensor in base.values()
        ]
        return Inputs((base, vectors, coefficients), (coefficients,), grads)

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        return (
            lambda: Contestant("robustcore", "operator", operator),
            lambda: Contestant("eager", "eager", eager, note="scaled vectors added up"),
            lambda: Contestant(
                "stacked", "peer", stacked, _stack, "vector times matrix; stacked beforehand"
            ),
            lambda: compiled(eager),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        tasks, parameters = case.size.dimensions["tasks"], case.size.dimensions["parameters"]
        read = (tasks + 1) * parameters * 4
        # Backward reads the gradient and the vectors.
        return LeastBytes(2 * read if case.with_backward else read, parameters * 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """Errors of the weights and of the coefficients' gradient against float64."""
        case = Case(self.sizes[1], "forward+backward", device)
        inputs = self.inputs(case, 0)
        ours, theirs = _facts(operator, inputs), _facts(eager, inputs)
        exact = _facts(eager, inputs, torch.float64)
        errors = {
            name: (
                ((ours[name] - true).norm() / true.norm()).item(),
                ((theirs[name] - true).norm() / true.norm()).item(),
            )
            for name, true in exact.items()
        }
        return [Accuracy(case.size.label, errors)]


def _facts(
    function: Callable[..., list[Tensor]], inputs: Inputs, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    base, vectors, coefficients = inputs.arguments

    def converted(model: State) -> State:
        return {key: tensor.to(dtype) for key, tensor in model.items()}

    leaf = coefficients.detach().to(dtype).requires_grad_()
    results = function(converted(base), [converted(vector) for vector in vectors], leaf)
    grads: Any = [grad.to(dtype) for grad in inputs.grad_output]  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(results, leaf, grads)
    weights = torch.cat([result.detach() for result in results])
    return {"weights": weights.double(), "gradient": gradient.double()}


benchmark = CombineTaskVectors()
