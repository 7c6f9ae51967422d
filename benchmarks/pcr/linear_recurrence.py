"""linear_recurrence against the loop over time and against parallel scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..accuracy import errors_with_gradients
from ..contestants import compiled
from ..registry import Accuracy, Benchmark, Case, Contestant, Inputs, LeastBytes, Size, Unavailable
from ..targets import Target

_PASSES = ("forward", "forward+backward")
# torch.compile unrolls the loop: a graph of a few hundred steps takes minutes to compile.
_MOST_COMPILED_STEPS = 32


def loop(a: Tensor, x: Tensor) -> Tensor:
    """The reference: a Python loop over time.

    It takes the steps apart with ``unbind``. Many people write ``a[:, t]`` instead, whose backward
    pass fills a tensor of the whole length for every step: minutes at the sizes below.
    """
    from robustcore.reference.pcr import linear_recurrence

    return linear_recurrence(a, x)


def _size(
    batch: int,
    time: int,
    channels: int,
    scale: str,
    *,
    quick: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Size:
    dimensions = {"batch": batch, "time": time, "channels": channels}
    return Size(f"({batch}, {time}, {channels})", dimensions, scale, devices, quick)


class LinearRecurrence(Benchmark):
    family = "pcr"
    operator = "linear_recurrence"
    passes = _PASSES
    sizes = (
        _size(4, 32, 16, "small", quick=True),
        _size(4, 512, 64, "medium", quick=True),
        _size(8, 4096, 512, "large"),
        _size(1, 65536, 64, "large"),
        _size(16, 8192, 1024, "large", devices=("cuda",)),
    )
    targets = (
        *(
            Target(
                f"at least {bound} times as fast as the loop", "speedup:eager", bound, size, passes
            )
            for size, bound in (("(8, 4096, 512)", 8.0), ("(1, 65536, 64)", 50.0))
            for passes in _PASSES
        ),
        *(
            Target(
                "at least 50 % of the copy bandwidth",
                "fraction_of_copy",
                0.5,
                "(8, 4096, 512)",
                passes,
            )
            for passes in _PASSES
        ),
        Target(
            "fp32 error at most 4 times that of eager",
            "error_ratio",
            4.0,
            at_least=False,
            device="",
        ),
        *(
            Target(
                "at least 85 % of the copy bandwidth",
                "fraction_of_copy",
                0.85,
                "(16, 8192, 1024)",
                passes,
                device="cuda",
            )
            for passes in _PASSES
        ),
    )

    def inputs(self, case: Case, seed: int) -> Inputs:
        shape = tuple(case.size.dimensions[name] for name in ("batch", "time", "channels"))
        generator = torch.Generator(case.device).manual_seed(seed)
        options = {"generator": generator, "device": case.device}
        # Gates close to 1 remember long, so that errors have time to add up.
        a = 1 - 0.1 * torch.rand(shape, **options)
        x = torch.randn(shape, **options)
        if not case.with_backward:
            return Inputs((a, x))
        leaves = (a.requires_grad_(), x.requires_grad_())
        return Inputs(leaves, leaves, torch.randn(shape, **options))

    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        from robustcore.pcr import linear_recurrence

        return (
            lambda: Contestant("robustcore", "operator", linear_recurrence),
            lambda: Contestant("eager", "eager", loop, note="a Python loop over time"),
            lambda: _compiled_loop(case),
            lambda: _associative_scan(case, with_compile=False),
            lambda: _associative_scan(case, with_compile=True),
            lambda: _accelerated_scan(case),
        )

    def least_bytes(self, case: Case) -> LeastBytes:
        """a and x in, h out; backward the gradient of h, a and h in, those of a and x out."""
        dimensions = case.size.dimensions
        tensor = 4 * dimensions["batch"] * dimensions["time"] * dimensions["channels"]
        if case.with_backward:
            return LeastBytes(5 * tensor, 3 * tensor)
        return LeastBytes(2 * tensor, tensor)

    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        from robustcore.pcr import linear_recurrence

        rows = []
        for size in self.sizes[: 2 if quick else 4]:
            inputs = self.inputs(Case(size, "forward+backward", device), 0)
            errors = errors_with_gradients(
                linear_recurrence, loop, loop, inputs, ("states", "a gradient", "x gradient")
            )
            rows.append(Accuracy(size.label, errors))
        return rows


def _compiled_loop(case: Case) -> Contestant:
    if case.size.dimensions["time"] > _MOST_COMPILED_STEPS:
        raise Unavailable("torch.compile", "it unrolls the loop; compiling takes minutes")
    return compiled(loop)


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return right[0] * left[0], right[0] * left[1] + right[1]


def _associative_scan(case: Case, *, with_compile: bool) -> Contestant:
    """PyTorch's own scan, which is not public yet."""
    name = "associative_scan" + (", compiled" if with_compile else "")
    try:
        from torch._higher_order_ops.associative_scan import associative_scan
    except ImportError:
        raise Unavailable(name, f"torch {torch.__version__} does not have it") from None
    mode = "pointwise" if case.device == "cuda" and with_compile else "generic"
    if with_compile:
        if case.with_backward:
            raise Unavailable(name, "compiling its backward pass takes minutes")
        if case.size.label != "(8, 4096, 512)":
            raise Unavailable(name, "compiled for one size only: it takes about a minute")

    def scan(a: Tensor, x: Tensor) -> Tensor:
        return associative_scan(_combine, (a, x), 1, combine_mode=mode)[1]

    return Contestant(name, "peer", torch.compile(scan) if with_compile else scan)


def _accelerated_scan(case: Case) -> Contestant:
    """accelerated-scan's kernel; it wants (batch, channels, time), which is prepared beforehand."""
    name = "accelerated-scan"
    if case.device != "cuda":
        raise Unavailable(name, "its kernels need CUDA")
    try:
        from accelerated_scan.warp import scan
    except Exception:  # it compiles on import, and fails in many ways
        raise Unavailable(name, "not installed, or it does not compile here") from None

    def transposed(inputs: Inputs) -> Inputs:
        def move(tensor: Tensor) -> Tensor:
            copy = tensor.detach().transpose(1, 2).contiguous()
            return copy.requires_grad_(tensor.requires_grad)

        arguments = tuple(move(tensor) for tensor in inputs.arguments)
        grad_output = None if inputs.grad_output is None else move(inputs.grad_output)
        return Inputs(arguments, arguments if inputs.leaves else (), grad_output)

    return Contestant(name, "peer", scan, transposed, "time last, transposed beforehand")


benchmark = LinearRecurrence()
