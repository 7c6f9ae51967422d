"""What a benchmark is, and the list of them. A new operator adds its module to ``_MODULES``."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from .targets import Target

__all__ = [
    "Benchmark",
    "Case",
    "Contestant",
    "Inputs",
    "LeastBytes",
    "Size",
    "Unavailable",
    "all_benchmarks",
    "select_benchmarks",
]

_MODULES = (
    "losses.gated_cross_entropy",
    "losses.comp_sum_loss",
    "losses.taylor_cross_entropy",
    "losses.shrink_match_loss",
    "losses.crossmax",
    "losses.linear_gated_cross_entropy",
    "losses.heteroscedastic_cross_entropy",
    "losses.mixture_cross_entropy",
    "losses.mixture_log_softmax",
    "losses.pair_kl_divergence",
    "losses.energy_weighted_loss",
    "losses.energy_weights",
    "losses.smooth_adversarial_loss",
    "losses.early_learning_loss",
    "losses.over_parameterized_loss",
    "losses.symmetric_cross_entropy",
    "losses.normalized_cross_entropy",
    "losses.spherical_z_loss",
    "losses.ldr_kl_loss",
    "losses.aldr_kl_loss",
    "merging.tall_masks",
    "merging.task_switcher",
    "merging.combine_task_vectors",
    "merging.mask_consensus",
    "merging.ties_global",
    "pcr.linear_recurrence",
)

Pass = Literal["forward", "forward+backward"]


class Unavailable(Exception):
    """A contestant cannot run here; the message says why and ends up in the table."""


@dataclass(frozen=True)
class Size:
    """One size of a benchmark.

    Args:
        label: As it is written in tables and targets, for example ``[1024, 100]``.
        dimensions: The numbers behind the label.
        scale: ``small``, ``medium`` or ``large``; large sizes do not fit the last-level cache.
        devices: Kinds of device on which this size is run.
        quick: Whether ``--quick`` includes it.
        dtype: Type of the floating-point inputs.
    """

    label: str
    dimensions: Mapping[str, int]
    scale: Literal["small", "medium", "large"]
    devices: tuple[str, ...] = ("cpu", "cuda")
    quick: bool = False
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Case:
    """One row of the table: a size and a pass on a device."""

    size: Size
    passes: Pass
    device: str

    @property
    def with_backward(self) -> bool:
        return self.passes == "forward+backward"


@dataclass(frozen=True)
class Inputs:
    """One input set. Contestants call ``function(*arguments)``.

    Args:
        arguments: Positional arguments.
        leaves: The tensors whose gradients the backward pass computes.
        grad_output: What arrives from above; None for a scalar loss.
    """

    arguments: tuple[Any, ...]
    leaves: tuple[torch.Tensor, ...] = ()
    grad_output: torch.Tensor | None = None


@dataclass(frozen=True)
class Contestant:
    """Something that is timed.

    Args:
        name: As written in the table.
        kind: ``operator``, ``eager``, ``compiled`` or ``peer``; ``probe`` for bandwidths.
        function: The forward computation; the harness adds the backward pass.
        prepare: Applied once to each input set, outside the timing.
        note: What a reader must know to judge the comparison.
    """

    name: str
    kind: Literal["operator", "eager", "compiled", "peer", "probe"]
    function: Callable[..., Any]
    prepare: Callable[[Inputs], Inputs] | None = None
    note: str = ""


@dataclass(frozen=True)
class LeastBytes:
    """Bytes that any implementation must move between memory and processor."""

    read: int
    written: int

    @property
    def total(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Accuracy:
    """Errors by norm against float64: of the operator and of the eager fp32 reference."""

    size: str
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Benchmark(ABC):
    """One operator: its sizes, inputs, contestants, least traffic, accuracy and targets."""

    family: ClassVar[str]
    operator: ClassVar[str]
    sizes: ClassVar[Sequence[Size]]
    passes: ClassVar[Sequence[Pass]]
    targets: ClassVar[Sequence[Target]]

    @property
    def name(self) -> str:
        return f"{self.family}.{self.operator}"

    @abstractmethod
    def inputs(self, case: Case, seed: int) -> Inputs:
        """One input set on the case's device."""

    @abstractmethod
    def contestants(self, case: Case) -> Sequence[Callable[[], Contestant]]:
        """Makers of contestants, the operator first; a maker may raise :class:`Unavailable`."""

    @abstractmethod
    def least_bytes(self, case: Case) -> LeastBytes:
        """The traffic that cannot be avoided."""

    @abstractmethod
    def accuracy(self, device: str, quick: bool) -> Sequence[Accuracy]:
        """Errors against float64."""

    def counts(self, case: Case) -> Mapping[str, float]:
        """Numbers of the operator that are no times, by name; measured outside the timing."""
        return {}


def all_benchmarks() -> list[Benchmark]:
    """Every benchmark, in the order of the table."""
    return [importlib.import_module(f".{m}", __package__).benchmark for m in _MODULES]


def select_benchmarks(family: str | None = None, operator: str | None = None) -> list[Benchmark]:
    """The benchmarks of a family, or one of them.

    Raises:
        ValueError: If there is no such family or operator; the message lists those that exist.
    """
    found = all_benchmarks()
    for kind, wanted in (("family", family), ("operator", operator)):
        if wanted is None:
            continue
        names = sorted({getattr(benchmark, kind) for benchmark in found})
        found = [benchmark for benchmark in found if getattr(benchmark, kind) == wanted]
        if not found:
            raise ValueError(f"{kind} must be one of {', '.join(names)}, got {wanted!r}")
    return found
