"""A benchmark that costs nothing."""

import torch

from robustcore.benchmarks.registry import (
    Accuracy,
    Benchmark,
    Contestant,
    Inputs,
    LeastBytes,
    Size,
    Unavailable,
)
from robustcore.benchmarks.targets import Target


def double(x):
    return 2 * x


def broken(x):
    raise RuntimeError("first line\nsecond line")


def missing():
    raise Unavailable("peer", "not installed")


class Doubling(Benchmark):
    family = "fake"
    operator = "double"
    passes = ("forward", "forward+backward")
    sizes = (
        Size("[8]", {"n": 8}, "small", quick=True),
        Size("[4096]", {"n": 4096}, "medium", quick=True),
        Size("[9]", {"n": 9}, "large", devices=("cuda",)),
    )
    targets = (
        Target("not slower than eager by far", "speedup:eager", 1e-9, "[8]", "forward"),
        Target("impossible", "speedup:eager", 1e9, "[8]", "forward+backward"),
        Target("only on CUDA", "fraction_of_copy", 0.5, "[9]", "forward", device="cuda"),
        Target("not compiled", "speedup:compiled", 1.0, "[8]", "forward"),
        Target("exact", "error_ratio", 4.0, at_least=False, device=""),
    )

    def inputs(self, case, seed):
        x = torch.full((case.size.dimensions["n"],), float(seed + 1))
        if not case.with_backward:
            return Inputs((x,))
        x.requires_grad_()
        return Inputs((x,), (x,), torch.ones_like(x))

    def contestants(self, case):
        return (
            lambda: Contestant("robustcore", "operator", double),
            lambda: Contestant("eager", "eager", lambda x: x + x),
            lambda: Contestant("broken", "peer", broken),
            missing,
        )

    def least_bytes(self, case):
        return LeastBytes(4 * case.size.dimensions["n"], 8 * case.size.dimensions["n"])

    def accuracy(self, device, quick):
        return [Accuracy("[8]", {"output": (2.0**-24, 0.0), "gradient": (3e-7, 1e-7)})]
