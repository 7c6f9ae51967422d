"""TIES with magnitudes ranked over the whole model, of models in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size, Unavailable
from ..targets import Target

_PARAMETERS = 22_700_000
_TASKS = 8
_DENSITY = 0.2
_LARGE = f"T={_TASKS}, P=22.7 million"


def merged(base: Tensor, finetuned: list[Tensor]) -> Tensor:
    from robustcore.merging import merge

    return merge(base, finetuned, method="ties", density=_DENSITY)


def eager(base: Tensor, finetuned: list[Tensor]) -> Tensor:
    """As the authors compute it: task vectors in one matrix [T, P], one step after the other."""
    from robustcore.reference.merging.methods import ties_global

    return base + ties_global(torch.stack(finetuned) - base, _DENSITY)


class TiesGlobal(Benchmark):
    family = "merging"
    operator = "ties_global"
    passes = ("forward",)
    sizes = (
        Size("T=4, P=65536", {"tasks": 4, "parameters": 65536}, "small", quick=True),
        Size("T=4, P=1 million", {"tasks": 4, "parameters": 1_000_000}, "medium", quick=True),
        Size(_LARGE, {"tasks": _TASKS, "parameters": _PARAMETERS}, "large"),
    )
    targets = (
        Target("at least 20 times as fast as eager", "speedup:eager", 20.0, _LARGE, "forward"),
        Target(
            "at most 3 reads of the data", "count:walks", 3.0, _LARGE, "forward", at_least=False
        ),
        Target(
            "no larger error than 4 times that of eager",
            "error_ratio",
            4.0,
            at_least=False,
            device="",
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
        return (
            lambda: Contestant("robustcore", "operator", merged),
            lambda: Contestant("eager", "eager", eager, note="the authors' steps on [T, P]"),
            lambda: compiled(eager),
            _published,
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """One read; exact thresholds of magnitudes take two more."""
        tasks, parameters = case.size.dimensions["tasks"], case.size.dimensions["parameters"]
        return LeastBytes((tasks + 1) * parameters * 4, parameters * 4)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.testing import error_against

        case = Case(self.sizes[1], "forward", device)
        base, finetuned = self.inputs(case, 0).arguments
        exact = eager(base.double(), [weights.double() for weights in finetuned])
        errors = [error_against(f(base, finetuned), exact) for f in (merged, eager)]
        return [Accuracy(case.size.label, {"weights": (errors[0], errors[1])})]

    def counts(self, case: Case) -> Mapping[str, float]:
        """How many times all weights are read."""
        from robustcore.merging.engine.execute import Execution, execute
        from robustcore.merging.merge import StateDictSink, prepare

        base, finetuned = self.inputs(case, 0).arguments
        plan, recipe = prepare(
            "merge",
            base,
            finetuned,
            method="ties",
            mismatch="error",
            dtype=None,
            options={"density": _DENSITY},
        )
        how = Execution(device=base.device)
        return {
            "walks": execute("merge", plan, recipe, StateDictSink(plan, base.device), how=how).walks
        }


def _published() -> Contestant:
    raise Unavailable("published package", "mergekit ranks by tensor: see against_mergekit.py")


benchmark = TiesGlobal()
