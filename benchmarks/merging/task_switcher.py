"""TaskSwitcher: from the weights of one task to those of another, in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size
from ..targets import Target
from .models import LARGE_PARAMETERS, random_model

_LARGE = "P=22.7 million"
_KEPT = 0.4
_DISK = "load_state_dict from disk"
_TASKS = ("a", "b")

State = dict[str, Tensor]


def _masks(base: State, words: Tensor) -> Any:
    from robustcore.merging import PackedMasks
    from robustcore.merging.state_dict import read_layout

    layout, _ = read_layout("benchmark", base)
    return PackedMasks(words, layout, _TASKS)


class _Operator:
    """Each call switches to the other task."""

    def __init__(self, base: State, merged: State, words: Tensor) -> None:
        from robustcore.merging import TaskSwitcher

        self.weights = {key: tensor.clone() for key, tensor in base.items()}
        self.switcher = TaskSwitcher(self.weights, _masks(base, words), merged, base)
        self.switcher.to("a")

    def __call__(self) -> State:
        self.switcher.to("b" if self.switcher.current == "a" else "a")
        return self.weights


class _Eager:
    """The packed mask of the other task unpacked, and the weights computed from it."""

    def __init__(self, base: State, merged: State, words: Tensor) -> None:
        self.weights = {key: tensor.clone() for key, tensor in base.items()}
        self.base, self.merged = base, merged
        self.masks = [row.view(torch.uint8) for row in words]
        self.shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
        self.task = 0

    def __call__(self) -> State:
        self.task = 1 - self.task
        bits = (self.masks[self.task].unsqueeze(1) >> self.shifts & 1).bool().view(-1)
        start = 0
        for key, weight in self.weights.items():
            kept = bits[start : start + weight.numel()]
            start += weight.numel()
            torch.where(kept, self.base[key] + self.merged[key], self.base[key], out=weight)
        return self.weights


class _Files:
    """The weights of every task in a file; each call loads the other one."""

    def __init__(self, base: State, merged: State, words: Tensor, *, cold: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.weights = {key: tensor.clone() for key, tensor in base.items()}
        self.cold, self.task = cold, 0
        self.files = []
        for task in _TASKS:
            self.files.append(Path(self.folder.name) / f"{task}.pt")
            torch.save(_masks(base, words).apply(task, base, merged), self.files[-1])
            with self.files[-1].open("rb") as file:
                os.fsync(file.fileno())

    def __call__(self) -> State:
        self.task = 1 - self.task
        path = self.files[self.task]
        if self.cold:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        state = torch.load(path, weights_only=True)
        for key, weight in self.weights.items():
            weight.copy_(state[key])
        return self.weights


def _contestant(name: str, kind: Any, make: Callable[..., Any], note: str = "") -> Contestant:
    def prepare(inputs: Inputs) -> Inputs:
        return Inputs((make(*inputs.arguments),))

    return Contestant(name, kind, lambda switch: switch(), prepare, note)


class TaskSwitching(Benchmark):
    family = "merging"
    operator = "task_switcher"
    passes = ("forward",)
    sizes = (
        Size("P=65536", {"parameters": 65536}, "small", quick=True),
        Size("P=1 million", {"parameters": 1_000_000}, "medium", quick=True),
        Size(_LARGE, {"parameters": LARGE_PARAMETERS}, "large"),
    )
    targets = (
        Target(
            "at most 1.3 times the time of moving base, vector, masks and weights once",
            "fraction_of_copy",
            1 / 1.3,
            _LARGE,
            "forward",
        ),
        Target(
            "at least 10 times as fast as loading a state dict from disk",
            f"speedup:{_DISK}",
            10.0,
            _LARGE,
            "forward",
        ),
        Target("the bits of eager", "error_ratio", 1.0, at_least=False, device=""),
        Target(
            "at least 80 % of the copy bandwidth",
            "fraction_of_copy",
            0.8,
            _LARGE,
            "forward",
            device="cuda",
        ),
        Target(
            "at least 10 times as fast as eager",
            "speedup:eager",
            10.0,
            _LARGE,
            "forward",
            device="cuda",
        ),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        from robustcore.reference.merging import pack_words

        parameters = case.size.dimensions["parameters"]
        generator = torch.Generator(case.device).manual_seed(seed)
        base = random_model(parameters, generator, case.device)
        merged = random_model(parameters, generator, case.device, 0.002)
        rows = []
        for _ in _TASKS:
            kept = torch.rand(parameters, generator=generator, device=case.device) < _KEPT
            rows.append(pack_words(kept))
        return Inputs((base, merged, torch.stack(rows)))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        return (
            lambda: _contestant("robustcore", "operator", _Operator, "the masks differ in 48 %"),
            lambda: _contestant("eager", "eager", _Eager, "packed masks, unpacked at each switch"),
            lambda: _contestant(
                _DISK,
                "peer",
                lambda *arguments: _Files(*arguments, cold=True),
                "torch.load; the file is dropped from the page cache before",
            ),
            lambda: _contestant(
                "load_state_dict from the page cache",
                "peer",
                lambda *arguments: _Files(*arguments, cold=False),
                "torch.load",
            ),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        parameters = case.size.dimensions["parameters"]
        return LeastBytes(2 * 4 * parameters + 2 * ((parameters + 7) // 8), 4 * parameters)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """Error of the weights after a switch, against float64."""
        case = Case(self.sizes[1], "forward", device)
        base, merged, words = self.inputs(case, 0).arguments
        ours, theirs = _Operator(base, merged, words)(), _Eager(base, merged, words)()
        wide = {key: tensor.double() for key, tensor in base.items()}
        vector = {key: tensor.double() for key, tensor in merged.items()}
        exact = _masks(wide, words).apply("b", wide, vector)
        errors = tuple(
            torch.cat([(state[key] - exact[key]).abs() for key in exact]).norm().item()
            / torch.cat(list(exact.values())).norm().item()
            for state in (ours, theirs)
        )
        return [Accuracy(case.size.label, {"weights": errors})]


benchmark = TaskSwitching()
