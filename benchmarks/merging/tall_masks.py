"""tall_masks: all masks of T tasks, packed, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def eager_masks(base: Tensor, finetuned: list[Tensor]) -> Tensor:
    """The authors' order of operations for every task and λ, with the bits packed: [T, λ, P/8]."""
    merged = torch.zeros_like(base)
    for weights in finetuned:
        merged += weights - base
    merged = base + merged
    packed = []
    for weights in finetuned:
        own, other = (base - weights).abs(), (merged - weights).abs()
        packed += [pack_bits(own > other * value) for value in _LAMBDAS]
    return torch.stack(packed).reshape(len(finetuned), len(_LAMBDAS), -1)


def pack_bits(mask: Tensor) -> Tensor:
    """Bit i of byte j is element 8j + i."""
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).view(-1, 8)
    packed = torch.zeros(len(padded), dtype=torch.uint8, device=mask.device)
    for bit in range(8):
        packed |= padded[:, bit].to(torch.uint8) << bit
    return packed


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
        Target("at least 40 times as fast as eager", "speedup:eager", 40.0, _LARGE, "forward"),
        Target("at least 50 % of the read bandwidth", "fraction_of_read", 0.5, _LARGE, "forward"),
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
            lambda: Contestant("eager", "eager", eager_masks, note="bits packed in PyTorch"),
            lambda: compiled(eager_masks),
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
        exact = eager_masks(base.double(), [weights.double() for weights in finetuned])
        eager = eager_masks(base, finetuned)
        masks = tall_masks(base, finetuned)
        ours = torch.stack(
            [
                torch.stack([pack_bits(masks.select(value).unpack(t)) for value in _LAMBDAS])
                for t in range(len(finetuned))
            ]
        )
        bits = float(exact.numel() * 8)
        errors = (_differing_bits(ours, exact) / bits, _differing_bits(eager, exact) / bits)
        return [Accuracy(case.size.label, {"wrong bits": errors})]


def _differing_bits(a: Tensor, b: Tensor) -> int:
    difference = a ^ b
    return sum(int(((difference >> bit) & 1).sum()) for bit in range(8))


def _published() -> Contestant:
    raise Unavailable("published package", "none computes these masks")


benchmark = TallMasks()
