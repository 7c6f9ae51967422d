"""The weights that a switcher rewrites: where they are, and whether somebody changed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._operators import implementation
from ._overwriting import overlapping, placed_bytes
from .packed_masks import PackedMasks
from .state_dict import FlatLayout, check_model

__all__ = ["ResidentWeights", "Slot", "find_weights"]

#: Where a weight is held and under which name, so that a replaced one is noticed.
Slot = tuple[Mapping[str, Any], str]


def find_weights(op: str, model: Any, layout: FlatLayout) -> tuple[list[str], list[Slot]]:
    """What does not match the layout, and the slots of the weights in flat order."""
    if isinstance(model, nn.Module):
        if layout.is_tensor:
            raise TypeError(f"{op}: model must be a tensor like the masks' models, got a module")
        slots, parameters = _module_slots(model)
        known = {info.key for info in (*layout.parameters, *layout.skipped)}
        slots = {name: slot for name, slot in slots.items() if name in known or name in parameters}
    else:
        check_model(op, "model", model)
        if isinstance(model, Tensor) != layout.is_tensor:
            kind = "a tensor" if layout.is_tensor else "a module or a state dict"
            raise TypeError(
                f"{op}: model must be {kind} like the masks' models, got {type(model).__name__}"
            )
        held = {"": model} if isinstance(model, Tensor) else model
        slots = {name: (held, name) for name in held}
    tensors = {name: holder[key] for name, (holder, key) in slots.items()}
    expected = [tensors[info.key] for info in layout.parameters if info.key in tensors]
    device = next((t.device for t in expected if isinstance(t, Tensor)), torch.device("cpu"))
    found = layout.differences("model", tensors[""] if layout.is_tensor else tensors, device)
    if device.type == "meta":
        found.append("model must hold weights, got meta tensors")
    return found, [] if found else [slots[key] for key in layout.keys]


def _module_slots(model: nn.Module) -> tuple[dict[str, Slot], set[str]]:
    """Every name of the state dict, those of tied tensors too; and which are parameters."""
    slots: dict[str, Slot] = {}
    parameters = set()
    for path, owner in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for key, tensor in owner._parameters.items():
            if tensor is not None:
                slots[prefix + key] = (owner._parameters, key)
                parameters.add(prefix + key)
        for key, tensor in owner._buffers.items():
            if tensor is not None and key not in owner._non_persistent_buffers_set:
                slots[prefix + key] = (owner._buffers, key)
    return slots, parameters


class ResidentWeights:
    """Weights in flat order, and what they were when they were last looked at.

    Attributes:
        tensors: The weights themselves.
        ties: Groups of indices of weights that are one and the same memory.
    """

    def __init__(self, op: str, keys: Sequence[str], slots: Sequence[Slot]) -> None:
        self._keys = keys
        self._slots = slots
        self._marks: list[tuple[int, int]] | None = None
        self.tensors: list[Tensor] = []
        self._read(op)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device if self.tensors else torch.device("cpu")

    def _held(self) -> list[Any]:
        return [holder.get(key) for holder, key in self._slots]

    def _read(self, op: str) -> None:
        tensors = self._held()
        inference = [key for key, t in zip(self._keys, tensors, strict=True) if t.is_inference()]
        if inference:
            raise ValueError(f"{op}: model must not hold inference tensors, got {inference}")
        self.ties = _tied(op, self._keys, tensors)
        self.tensors = tensors

    def refresh(self, op: str) -> None:
        """Takes the weights that the model has now, which must be of the same kind."""
        for key, old, new in zip(self._keys, self.tensors, self._held(), strict=True):
            if not isinstance(new, Tensor) or new.shape != old.shape:
                raise RuntimeError(f"{op}: {key!r} was replaced by something else")
        self._read(op)

    def remember(self) -> None:
        self._marks = [(tensor._version, tensor.data_ptr()) for tensor in self.tensors]
        self._kinds = [(tensor.device, tensor.dtype) for tensor in self.tensors]

    def forget(self) -> None:
        """From here on the weights count as changed."""
        self._marks = None

    def changes(self) -> str:
        """What happened to the weights since :meth:`remember`, in words; empty for nothing."""
        held = self._held()
        for key, tensor, kind in zip(self._keys, held, self._kinds, strict=True):
            if isinstance(tensor, Tensor) and (tensor.device, tensor.dtype) != kind:
                raise RuntimeError(
                    f"TaskSwitcher.to: {key!r} was {kind[1]} on {kind[0]} and is {tensor.dtype} on "
                    f"{tensor.device} now: make a new TaskSwitcher after moving a model"
                )
        if self._marks is None:
            return "the last switch was interrupted"
        changed = [
            key
            for key, tensor, new, mark in zip(
                self._keys, self.tensors, held, self._marks, strict=True
            )
            if new is not tensor or (tensor._version, tensor.data_ptr()) != mark
        ]
        if not changed:
            return ""
        names = ", ".join(repr(key) for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        return f"weights were changed since the last switch: {names}{more}"

    def copies(self) -> list[Tensor]:
        """Contiguous copies, tied as the weights are."""
        results: dict[int, Tensor] = {}
        first = {index: group[0] for group in self.ties for index in group}
        for index, tensor in enumerate(self.tensors):
            source = first.get(index, index)
            if source not in results:
                results[source] = tensor.detach().clone(memory_format=torch.contiguous_format)
        return [results[first.get(index, index)] for index in range(len(self.tensors))]

    def apart(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same values contiguous, and copied where they share memory with the weights."""
        count = len(self.tensors)
        shared = {
            index - count
            for group in overlapping([*self.tensors, *tensors])
            if min(group) < count
            for index in group
        }
        return [
            tensor.clone(memory_format=torch.contiguous_format)
            if index in shared
            else tensor.contiguous()
            for index, tensor in enumerate(tensors)
        ]

    def check_ties(
        self, op: str, base: Sequence[Tensor], merged: Sequence[Tensor], masks: PackedMasks
    ) -> None:
        """Tied weights have one value, so what makes it must be equal."""
        starts = [0]
        for tensor in self.tensors:
            starts.append(starts[-1] + tensor.numel())
        found = []
        for first, *others in self.ties:
            for other in others:
                pair = f"{self._keys[first]!r} and {self._keys[other]!r}"
                for name, model in (("base", base), ("merged", merged)):
                    if not _same_bits(model[first], model[other]):
                        found.append(f"{pair} are tied, but {name} has different values for them")
                size = self.tensors[first].numel()
                for task, row in zip(masks.tasks, masks.words, strict=True):
                    bits = [_bits(row, starts[index], size) for index in (first, other)]
                    if not torch.equal(*bits):
                        found.append(f"{pair} are tied, but the masks of {task!r} differ for them")
        if found:
            raise ValueError("\n".join([f"{op}: tied weights must have one value:", *found]))


def _tied(op: str, keys: Sequence[str], tensors: Sequence[Tensor]) -> list[list[int]]:
    ties = []
    for group in overlapping(tensors):
        views: dict[Any, list[int]] = {}
        for index in group:
            tensor = tensors[index]
            views.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(index)
        ties += [same for same in views.values() if len(same) > 1]
        distinct = [same[0] for same in views.values()]
        if len(distinct) == 1 and tensors[distinct[0]].is_contiguous():
            continue
        names = [keys[index] for index in group]
        if _overlap([tensors[index] for index in distinct]):
            raise ValueError(
                f"{op}: weights must not overlap themselves or one another unless they are tied, "
                f"got {names}"
            )
    return ties


def _overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether any byte belongs to two elements, counted in a rehearsal of the memory."""
    try:
        buffer, views = placed_bytes(tensors)
        for view in views:
            view.add_(1)
    except RuntimeError:  # torch refuses to add to an expanded tensor in place
        return True
    return bool((buffer > 1).any())


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if first.data_ptr() == second.data_ptr():
        return True
    return torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (first, second)))


def _bits(row: Tensor, start: int, count: int) -> Tensor:
    """Bits [start, start + count) of a mask."""
    words = row[start // 64 : (start + count + 63) // 64]
    unpacked = implementation(words).mask_unpack(words, 64 * words.numel())
    return unpacked[start % 64 :][:count]
