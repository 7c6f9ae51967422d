"""Targets that benchmarks of losses share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..targets import Target

__all__ = ["PRECISION", "bandwidth_on_cuda", "extra_memory", "speedups", "usual_targets"]

_BOTH = "forward+backward"
_MIB = 1 << 20

PRECISION = Target(
    "fp32 error at most 4 times that of eager", "error_ratio", 4.0, at_least=False, device=""
)


def speedups(
    bounds: Mapping[str, tuple[float, float]], *, passes: str = _BOTH, device: str = "cpu"
) -> tuple[Target, ...]:
    """By label of the size: how many times as fast as eager and as torch.compile."""
    return tuple(
        Target(
            f"at least {bound[i]:g} times as fast as {against}",
            f"speedup:{kind}",
            bound[i],
            size,
            passes,
            device=device,
        )
        for i, (kind, against) in enumerate((("eager", "eager"), ("compiled", "torch.compile")))
        for size, bound in bounds.items()
    )


def bandwidth_on_cuda(
    sizes: Sequence[str] = ("[65536, 1024]", "[4096, 32768]"),
    *,
    passes: str = _BOTH,
    compiled: float = 1.2,
) -> tuple[Target, ...]:
    """On a GPU, for sizes that no cache holds: bound by memory, and ahead of the baselines."""
    copies = tuple(
        Target(
            "at least 85 % of the copy bandwidth",
            "fraction_of_copy",
            0.85,
            size,
            passes,
            device="cuda",
        )
        for size in sizes
    )
    bounds = dict.fromkeys(sizes, (4.0, compiled))
    return (*copies, *speedups(bounds, passes=passes, device="cuda"))


def extra_memory(matrices: int, rows: int = 4096, classes: int = 1000) -> Target:
    """``matrices``: how many fp32 matrices of the logits' shape are results and gradients."""
    return Target(
        f"extra memory: {matrices} {'matrix' if matrices == 1 else 'matrices'}, O(N) and 4 MiB",
        "extra_bytes",
        matrices * rows * classes * 4 + 256 * rows + 4 * _MIB,
        f"[{rows}, {classes}]",
        _BOTH,
        at_least=False,
    )


def usual_targets(eager: float, compiled: float, *, matrices: int = 1) -> tuple[Target, ...]:
    """Of a loss in one pass: never slower at [128, 10], as much faster as given at [4096, 1000]."""
    return (
        *speedups({"[128, 10]": (1.0, 1.0), "[4096, 1000]": (eager, compiled)}),
        extra_memory(matrices),
        PRECISION,
        *bandwidth_on_cuda(),
    )
