"""tall_masks: all masks of T tasks, packed, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size, Unavailable
from ..targets import Target

_LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
_PARAMETERS = 22_700_000
_TASKS = 8
_LARGE = f"T={_TASKS}, P=22.7 million"


def code_bytes(tasks: int, parameters: int) -> int:
    """The nested code of five λ: 3 bits for each parameter and task."""
    return tasks * 3 * ((parameters + 7) // 8)


def eager(base: Tensor, finetuned: list[Tensor]) -> list[list[Tensor]]:
    """The reference: the authors' code for one task and λ after the other, bits packed."""
    from robustcore.reference.merging import tall_masks_eager

    return tall_masks_eager(base, finetuned, _LAMBDAS)


def procedure(base: Tensor, finetuned: list[Tensor]) -> list[list[np.ndarray]]:
    """The authors' procedure, written plainly: all models flat in one matrix, for each λ the masks
    of all tasks as booleans, then numpy's packbits row by row."""
    weights = torch.vstack(finetuned)
    merged = base + (weights - base).sum(dim=0)
    masks = []
    for value in _LAMBDAS:
        kept = (base - weights).abs() > (merged - weights).abs() * value
        masks.append([np.packbits(row.numpy(), bitorder="little") for row in kept.cpu()])
    return masks


def tuned(base: Tensor, finetuned: list[Tensor]) -> list[list[Tensor]]:
    """The same as somebody writes it who cares: differences shared by the λ, few temporaries."""
    merged = finetuned[0] - base
    for weights in finetuned[1:]:
        merged += weights - base
    merged += base
    masks = []
    for weights in finetuned:
        own, others = (base - weights).abs_(), (merged - weights).abs_()
        masks.append([_packed(own > others * value) for value in _LAMBDAS])
    return masks


def _packed(mask: Tensor) -> Tensor:
    """Eight booleans at a time: their bytes as one integer, whose product gathers the bits."""
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).view(torch.int64)
    return (padded * 0x0102040810204080 >> 56).to(torch.uint8)


class TallMasks(Benchmark):
    family = "merging"
    operator = "tall_masks"
    passes = ("forward",)
    sizes = (
        Size("T=4, P=65536", {"tasks": 4, "parameters": 65536}, "small", quick=True),
        Size("T=4, P=1 million", {"tasks": 4, "parameters": 1_000_000}, "medium", quick=True),
        Size(_LARGE, {"tasks": _TASKS, "parameters": _PARAMETERS}, "large"),
    )
    targets = (
        Target("at least 100 times as fast as eager", "speedup:eager", 100.0, _LARGE, "forward"),
        Target("at least 60 % of the read bandwidth", "fraction_of_read", 0.6, _LARGE, "forward"),
        Target(
            "extra memory: 1.05 times the packed output and 64 MiB",
            "extra_bytes",
            1.05 * code_bytes(_TASKS, _PARAMETERS) + (64 << 20),
            _LARGE,
            "forward",
            at_least=False,
        ),
        Target(
            "no more wrong bits than 4 times those of eager",
            "error_ratio",
            4.0,
            at_least=False,
            device="",
        ),
        Target(
            "at least 80 % of the copy bandwidth",
            "fraction_of_copy",
            0.8,
            _LARGE,
            "forward",
            device="cuda",
        ),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        tasks, parameters = case.size.dimensions["tasks"], case.size.dimensions["parameters"]
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        base = torch.randn(parameters, **options) * 0.02
        finetuned = [base + torch.randn(parameters, **options) * 0.002 for _ in range(tasks)]
        return Inputs((base, finetuned))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.merging import tall_masks

        return (
            lambda: Contestant("robustcore", "operator", tall_masks),
            lambda: Contestant("eager", "eager", eager, note="one mask after the other"),
            lambda: Contestant(
                "procedure", "eager", procedure, note="the authors' steps, packbits"
            ),
            lambda: Contestant("eager, tuned", "peer", tuned, note="differences shared by the λ"),
            lambda: compiled(eager),
            _published,
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        tasks, parameters = case.size.dimensions["tasks"], case.size.dimensions["parameters"]
        return LeastBytes((tasks + 1) * parameters * 4, code_bytes(tasks, parameters))

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """Share of mask bits that differ from those of float64 arithmetic."""
        from robustcore.merging import tall_masks

        case = Case(self.sizes[1], "forward", device)
        base, finetuned = self.inputs(case, 0).arguments
        masks = tall_masks(base, finetuned)
        packed = [masks.select(value).packed for value in _LAMBDAS]
        ours = [[of_tasks[t] for of_tasks in packed] for t in range(len(finetuned))]
        exact = eager(base.double(), [weights.double() for weights in finetuned])
        plain = eager(base, finetuned)
        bits = sum(mask.numel() * 8 for of_task in exact for mask in of_task)
        errors = (_differing_bits(ours, exact) / bits, _differing_bits(plain, exact) / bits)
        return [Accuracy(case.size.label, {"wrong bits": errors})]


def _differing_bits(a: list[list[Tensor]], b: list[list[Tensor]]) -> int:
    count = 0
    for of_a, of_b in zip(a, b, strict=True):
        for x, y in zip(of_a, of_b, strict=True):
            difference = x.to(torch.uint8) ^ y
            count += sum(int(((difference >> bit) & 1).sum()) for bit in range(8))
    return count


def _published() -> Contestant:
    raise Unavailable("published package", "none computes these masks")


benchmark = TallMasks()
