"""PackedMasks.consensus: what at least k of T masks keep, on the packed bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size, Unavailable
from ..targets import Target

_PARAMETERS = 22_700_000
_TASKS = 8
_K = 2
_LARGE = f"T={_TASKS}, P=22.7 million"


def consensus(masks: Any) -> Tensor:
    return masks.consensus(_K).words


def eager(masks: Tensor) -> Tensor:
    """As the authors count: booleans [T, P], a byte each, summed over tasks."""
    return masks.sum(dim=0) >= _K


def _as_masks(inputs: Inputs) -> Inputs:
    """The words with what they mean."""
    from robustcore.merging import PackedMasks
    from robustcore.merging.state_dict import FlatLayout, TensorInfo

    words, parameters = inputs.arguments
    layout = FlatLayout((TensorInfo("", (parameters,), torch.float32),), is_tensor=True)
    return Inputs((PackedMasks(words, layout, [str(task) for task in range(len(words))]),))


def _unpacked(inputs: Inputs) -> Inputs:
    (masks,) = _as_masks(inputs).arguments
    return Inputs((torch.stack([masks.unpack(task) for task in masks.tasks]),))


class MaskConsensus(Benchmark):
    family = "merging"
    operator = "mask_consensus"
    passes = ("forward",)
    sizes = (
        Size("T=4, P=65536", {"tasks": 4, "parameters": 65536}, "small", quick=True),
        Size("T=4, P=1 million", {"tasks": 4, "parameters": 1_000_000}, "medium", quick=True),
        Size(_LARGE, {"tasks": _TASKS, "parameters": _PARAMETERS}, "large"),
    )
    targets = (
        Target("at least 30 times as fast as unpacked", "speedup:eager", 30.0, _LARGE, "forward"),
        Target("no wrong bits", "error_ratio", 0.0, at_least=False, device=""),
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
        shape = (tasks, (parameters + 63) // 64)
        least, most = -(2**63), 2**63 - 1
        words = torch.randint(least, most, shape, generator=generator, device=case.device)
        if parameters % 64:
            words[:, -1] &= (1 << parameters % 64) - 1
        return Inputs((words, parameters))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        note = "booleans, not packed"
        return (
            lambda: Contestant("robustcore", "operator", consensus, _as_masks),
            lambda: Contestant("eager", "eager", eager, _unpacked, note),
            lambda: dataclasses.replace(compiled(eager), prepare=_unpacked, note=note),
            _published,
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        tasks, words = (
            case.size.dimensions["tasks"],
            (case.size.dimensions["parameters"] + 63) // 64,
        )
        return LeastBytes(tasks * words * 8, words * 8)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """Share of wrong bits; there is nothing to round."""
        case = Case(self.sizes[1], "forward", device)
        inputs = self.inputs(case, 0)
        (masks,) = _as_masks(inputs).arguments
        expected = eager(*_unpacked(inputs).arguments)
        wrong = (masks.consensus(_K).unpack(0) != expected).double().mean().item()
        return [Accuracy(case.size.label, {"wrong bits": (wrong, 0.0)})]


def _published() -> Contestant:
    raise Unavailable("published package", "none counts packed masks")


benchmark = MaskConsensus()
