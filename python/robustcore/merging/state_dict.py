"""Models as flat vectors: which tensors take part, in which order, and whether models match.

The flat order of a state dict: its floating-point tensors sorted by name, each row-major, one after
the other. Integer and boolean buffers are not part of it; they are carried from the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._checks import FLOATING_DTYPES, accumulate_dtype

__all__ = ["FlatLayout", "Model", "TensorInfo", "named_models", "read_layout"]

#: A model: one tensor, or a state dict.
Model: TypeAlias = Tensor | Mapping[str, Tensor]

_MAXIMUM_LISTED = 200


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of one tensor of a model."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class FlatLayout:
    """What the flat order of a model is.

    Attributes:
        parameters: The floating-point tensors, in flat order.
        skipped: Integer and boolean buffers, which are carried from the base.
        is_tensor: The model is a single tensor and not a state dict; its key is ``""``.
    """

    parameters: tuple[TensorInfo, ...]
    skipped: tuple[TensorInfo, ...] = ()
    is_tensor: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(info.key for info in self.parameters)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(info.shape for info in self.parameters)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple(info.dtype for info in self.parameters)

    @property
    def num_parameters(self) -> int:
        return sum(info.numel for info in self.parameters)

    def tensors(self, model: Model) -> list[Tensor]:
        """The floating-point tensors of a matching model, in flat order."""
        if isinstance(model, Tensor):
            return [model]
        return [model[info.key] for info in self.parameters]

    def differences(
        self, name: str, model: Any, device: torch.device, *, vector: bool = False
    ) -> list[str]:
        """Every way in which ``model`` does not match this layout, one line each.

        With ``vector`` the model is a task vector: its tensors may also be in the dtype of
        computation, and skipped buffers are neither wanted nor looked at.
        """
        found = []
        tensors = _named_tensors(model)
        skipped = {info.key for info in self.skipped}
        expected = {info.key: info for info in self.parameters}
        if not vector:
            expected |= {info.key: info for info in self.skipped}
        for key in sorted(expected.keys() | tensors.keys()):
            label = name if self.is_tensor else f"{name}[{key!r}]"
            if key not in tensors:
                found.append(f"{label} is missing")
                continue
            tensor = tensors[key]
            if key not in expected:
                if not (vector and key in skipped):
                    found.append(f"{label} is not in base")
                continue
            if not isinstance(tensor, Tensor):
                found.append(f"{label} must be a tensor, got {type(tensor).__name__}")
                continue
            info = expected[key]
            if tuple(tensor.shape) != info.shape:
                found.append(f"{label} must have shape {info.shape}, got {tuple(tensor.shape)}")
            allowed = {info.dtype, accumulate_dtype(info.dtype)} if vector else {info.dtype}
            if tensor.dtype not in allowed:
                names = " or ".join(sorted(_dtype_name(dtype) for dtype in allowed))
                found.append(f"{label} must be {names}, got {_dtype_name(tensor.dtype)}")
            if tensor.layout is not torch.strided:
                found.append(f"{label} must be dense, got {tensor.layout}")
            if key not in skipped and tensor.device != device:
                found.append(f"{label} must be on {device}, got {tensor.device}")
        return found


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named_tensors(model: Any) -> dict[str, Any]:
    return {"": model} if isinstance(model, Tensor) else dict(model)


def check_model(op: str, name: str, model: Any) -> None:
    """A tensor or a mapping with string keys, else TypeError."""
    if isinstance(model, Tensor):
        return
    if not isinstance(model, Mapping):
        hint = "; pass module.state_dict()" if isinstance(model, torch.nn.Module) else ""
        raise TypeError(
            f"{op}: {name} must be a tensor or a state dict, got {type(model).__name__}{hint}"
        )
    for key in model:
        if not isinstance(key, str):
            raise TypeError(f"{op}: the keys of {name} must be strings, got {key!r}")


def raise_differences(op: str, found: Sequence[str]) -> None:
    """One ValueError that lists everything in ``found``; nothing where it is empty."""
    if not found:
        return
    listed = [f"  {line}" for line in found[:_MAXIMUM_LISTED]]
    if len(found) > _MAXIMUM_LISTED:
        listed.append(f"  and {len(found) - _MAXIMUM_LISTED} more")
    count = "1 difference" if len(found) == 1 else f"{len(found)} differences"
    raise ValueError("\n".join([f"{op}: the models must match base, got {count}:", *listed]))


def read_layout(op: str, base: Model) -> tuple[FlatLayout, torch.device]:
    """The layout of ``base`` and the device of its parameters."""
    check_model(op, "base", base)
    parameters, skipped, found = [], [], []
    device: torch.device | None = None
    tensors = _named_tensors(base)
    for key in sorted(tensors):
        tensor = tensors[key]
        label = "base" if isinstance(base, Tensor) else f"base[{key!r}]"
        if not isinstance(tensor, Tensor):
            found.append(f"{label} must be a tensor, got {type(tensor).__name__}")
            continue
        info = TensorInfo(key, tuple(tensor.shape), tensor.dtype)
        if not (tensor.is_floating_point() or tensor.is_complex()) and not isinstance(base, Tensor):
            skipped.append(info)
            continue
        if tensor.dtype not in FLOATING_DTYPES:
            found.append(
                f"{label} must be float32, float64, bfloat16 or float16, got "
                f"{_dtype_name(tensor.dtype)}"
            )
        if tensor.layout is not torch.strided:
            found.append(f"{label} must be dense, got {tensor.layout}")
        device = device or tensor.device
        if tensor.device != device:
            found.append(f"{label} must be on {device} like the rest, got {tensor.device}")
        parameters.append(info)
    if isinstance(base, Tensor) and found:
        raise TypeError(f"{op}: {found[0]}")
    raise_differences(op, found)
    layout = FlatLayout(tuple(parameters), tuple(skipped), isinstance(base, Tensor))
    return layout, device or torch.device("cpu")


def named_models(op: str, finetuned: Any) -> dict[str, Model]:
    """The fine-tuned models by name; those of a sequence are called "0", "1", ..."""
    if isinstance(finetuned, Mapping):
        for name in finetuned:
            if not isinstance(name, str):
                raise TypeError(f"{op}: the names in finetuned must be strings, got {name!r}")
        models = dict(finetuned)
    elif isinstance(finetuned, Sequence) and not isinstance(finetuned, (str, bytes)):
        models = {str(index): model for index, model in enumerate(finetuned)}
    else:
        hint = "; pass tensor.unbind()" if isinstance(finetuned, Tensor) else ""
        raise TypeError(
            f"{op}: finetuned must be a sequence or a mapping of models, got "
            f"{type(finetuned).__name__}{hint}"
        )
    if not models:
        raise ValueError(f"{op}: finetuned must hold at least one model, got none")
    return models


def matching_tensors(
    op: str,
    layout: FlatLayout,
    device: torch.device,
    models: Mapping[str, Model],
    *,
    vectors: frozenset[str] = frozenset(),
) -> dict[str, list[Tensor]]:
    """The tensors of each model in flat order, or one ValueError that lists every difference.

    ``models`` maps the name used in messages to the model; those in ``vectors`` are task vectors.
    """
    for name, model in models.items():
        check_model(op, name, model)
        if isinstance(model, Tensor) != layout.is_tensor:
            kind = "a tensor" if layout.is_tensor else "a state dict"
            raise TypeError(f"{op}: {name} must be {kind} like base, got {type(model).__name__}")
    found = []
    for name, model in models.items():
        found += layout.differences(name, model, device, vector=name in vectors)
    raise_differences(op, found)
    return {name: layout.tensors(model) for name, model in models.items()}
