"""One resident model that becomes any of its tasks by rewriting its weights in place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ._operators import implementation
from ._resident_weights import ResidentWeights, find_weights
from .packed_masks import PackedMasks
from .state_dict import Model, check_model, raise_differences
from .task_vectors import widened

__all__ = ["TaskSwitcher"]


class TaskSwitcher:
    r"""Rewrites the weights of a model to those of a task: :math:`\theta_0 + m_t \odot \tau_M`

    Base and multi-task vector are resident once, each further task costs one bit per parameter. A
    switch is one fused pass in place, which reads and writes weights only where the two masks
    differ; going back to the base restores it bit for bit, NaN and -0 included.

    Args:
        model: A module, or a mapping of tensors such as its ``state_dict()``. Its floating-point
            tensors must be those of ``masks.layout``: parameters and persistent buffers, the
            running statistics of BatchNorm included. Integer and boolean buffers are never touched,
            nor are floating-point buffers of a module that the masks know nothing of.
        masks: One packed mask per task. Copied to the device of the model if they are elsewhere.
        merged: :math:`\tau_M`, as for :meth:`PackedMasks.apply`. Used without a copy if it has the
            dtype of computation and is on the device of the model, so leave it as it is.
        base: :math:`\theta_0`; the model's weights are set to it at once. By default the weights
            that the model has now. Used without a copy if it is on the device of the model and
            shares no memory with it (``model.state_dict()`` does), so leave it as it is.

    Attributes:
        tasks: The names of the tasks.
        lock: A reentrant lock that every switch takes; see below.

    Raises:
        TypeError: An argument is not a model, or masks are not PackedMasks.
        ValueError: Models do not match the layout of the masks (one message lists all
            differences), or weights cannot be rewritten: tensors that overlap without being tied,
            tied ones with unequal masks, base or vector; expanded and inference tensors.

    **Threads.** Switches exclude each other. A forward pass reads weights without asking, so none
    may run while another thread switches: run it inside ``with switcher.using(task):``, which holds
    :attr:`lock` until the block ends, or take the lock yourself. On CUDA a switch is queued on the
    current stream; a forward pass on another stream must be synchronised with it by the caller.

    **Autograd.** Parameters that require grad are rewritten under ``no_grad``. Version counters go
    up, so that a backward pass through weights of another task is an error and not a wrong number.
    The weights may be trained between switches, yet a switch would mix them up: it finds changes by
    version counters and replaced storage and raises RuntimeError, unless ``force=True`` says to
    throw them away. Changes through ``parameter.data`` keep the counters and go unseen.

    **Memory**, :attr:`nbytes`, beside the model's own weights: the base, the multi-task vector in
    the dtype of computation, and (T + 1) P/8 bytes of masks (one is empty: the base). For 20 tasks
    of a float32 model that and the model are 14.6 bytes per parameter, where 20 models take 80.

    A switcher belongs to the memory of its model: it cannot be copied or pickled.

    Numerics: as :meth:`PackedMasks.apply`, whose bits a switched model has.

    Cost: a switch reads both masks, and base and vector where they differ. Tensors that are not
    contiguous (channels-last) are rewritten by way of contiguous copies, which live that long.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    arXiv 2405.07813.

    Example:
        >>> import torch
        >>> from robustcore.merging import TaskSwitcher, multi_task_vector, tall_masks
        >>> model = torch.nn.Linear(2, 1)
        >>> base = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        >>> tasks = {name: {key: tensor + torch.randn_like(tensor) for key, tensor in base.items()}
        ...          for name in ("cars", "digits")}
        >>> masks = tall_masks(base, tasks).select(0.4)
        >>> switcher = TaskSwitcher(model, masks, multi_task_vector(base, tasks))
        >>> with switcher.using("cars"):
        ...     _ = model(torch.ones(1, 2))  # the network for cars
        >>> switcher.to("digits").current
        'digits'
        >>> switcher.restore()
        >>> torch.equal(model.weight, base["weight"])
        True
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        masks: PackedMasks,
        merged: Model,
        base: Model | None = None,
    ) -> None:
        op = "TaskSwitcher"
        if not isinstance(masks, PackedMasks):
            raise TypeError(f"{op}: masks must be PackedMasks, got {type(masks).__name__}")
        layout = masks.layout
        given: dict[str, Any] = {"merged": merged} | ({} if base is None else {"base": base})
        for name, each in given.items():
            check_model(op, name, each)
            if isinstance(each, Tensor) != layout.is_tensor:
                kind = "a tensor" if layout.is_tensor else "a state dict"
                raise TypeError(f"{op}: {name} must be {kind} like the masks' models")
        found, slots = find_weights(op, model, layout)
        for name, each in given.items():
            # Buffers stay what they are in the model: those of the base are not wanted.
            found += layout.differences(name, each, _device_of(each), vector=name == "merged")
        raise_differences(op, found)
        self._model = model  # kept alive, and looked at for replaced parameters
        self._weights = ResidentWeights(op, layout.keys, slots)
        device = self._weights.device
        self._masks = masks.to(device)
        self.tasks = masks.tasks
        self.lock = threading.RLock()
        weights = self._weights.tensors
        with torch.no_grad():
            vectors = [tensor.detach().to(device) for tensor in layout.tensors(merged)]
            self._merged = self._weights.apart(widened(vectors, weights))
            if base is None:
                self._base = self._weights.copies()
            else:
                starts = [tensor.detach().to(device) for tensor in layout.tensors(base)]
                self._base = self._weights.apart(starts)
            self._none = self._masks.words.new_zeros(self._masks.words.shape[1])
            self._weights.check_ties(op, self._base, self._merged, self._masks)
            self._current: int | None = None
            if base is not None:
                self._rewrite(None)
            self._weights.remember()

    @property
    def current(self) -> str | None:
        """The task whose weights the model has; None for the base."""
        return None if self._current is None else self.tasks[self._current]

    @property
    def nbytes(self) -> int:
        """Bytes that are resident beside the model: base, multi-task vector, masks."""
        distinct = {
            tensor.data_ptr(): tensor.nbytes
            for tensor in (*self._base, *self._merged, self._masks.words, self._none)
            if tensor.nbytes
        }
        return sum(distinct.values())

    def __repr__(self) -> str:
        return (
            f"TaskSwitcher(tasks={list(self.tasks)}, current={self.current!r}, "
            f"nbytes={self.nbytes}, device={self._weights.device})"
        )

    def to(self, task: int | str | None, *, force: bool = False) -> TaskSwitcher:
        """Gives the model the weights of a task.

        Args:
            task: Index or name of the task; None for the base.
            force: Rewrite every weight, whatever it is now.

        Returns:
            This switcher.

        Raises:
            TypeError, IndexError: There is no such task.
            RuntimeError: The weights were changed since the last switch, or that was interrupted,
                and ``force`` is not set; or the model was moved to another device or dtype. Nothing
                is changed then.
        """
        target = None if task is None else self._masks._index("TaskSwitcher.to", task)
        with self.lock:
            self._switch(target, force)
        return self

    def restore(self, *, force: bool = False) -> None:
        """Gives the model the weights of the base, bit for bit: ``to(None)``."""
        self.to(None, force=force)

    @contextlib.contextmanager
    def using(self, task: int | str | None, *, force: bool = False) -> Iterator[TaskSwitcher]:
        """A context with the weights of a task; the task (or base) of before returns at its end.

        It holds :attr:`lock`, so that no other thread switches meanwhile. Contexts may be nested.
        The weights of before also return after an exception, even if they were changed inside the
        block. Without one, weights that
        were changed inside the block stay as they are and RuntimeError is raised: what was trained
        is not thrown away without a word.

        Args:
            task: As in :meth:`to`.
            force: As in :meth:`to`, on entry.
        """
        target = None if task is None else self._masks._index("TaskSwitcher.using", task)
        with self.lock:
            before = self._current
            self._switch(target, force)
            try:
                yield self
            except BaseException:
                self._switch(before, force=bool(self._weights.changes()))
                raise
            self._switch(before, force=False)

    def _switch(self, target: int | None, force: bool) -> None:
        with torch.no_grad():
            changed = self._weights.changes()
            if not force and changed:
                raise RuntimeError(
                    f"TaskSwitcher.to: {changed}; pass force=True to throw the changes away and "
                    "rewrite every weight"
                )
            if force and changed:
                self._weights.refresh("TaskSwitcher.to")
            self._weights.forget()  # until the weights are what they should be
            if force:
                self._rewrite(target)
            elif self._current != target:
                self._pass(self._mask(self._current), self._mask(target))
            self._current = target
            self._weights.remember()

    def _rewrite(self, target: int | None) -> None:
        """Every weight, from the base."""
        for weight, start in zip(self._weights.tensors, self._base, strict=True):
            weight.copy_(start)
        if target is not None:
            self._pass(self._none, self._mask(target))

    def _mask(self, task: int | None) -> Tensor:
        return self._none if task is None else self._masks.words[task]

    def _pass(self, before: Tensor, after: Tensor) -> None:
        weights = self._weights.tensors
        if not weights:
            return
        functions = implementation(weights[0])
        strided = [i for i, weight in enumerate(weights) if not weight.is_contiguous()]
        targets = list(weights)
        for index in strided:
            targets[index] = weights[index].contiguous()
        functions.mask_switch_(targets, self._base, self._merged, before, after)
        for index in strided:
            weights[index].copy_(targets[index])

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "TaskSwitcher: cannot be copied or pickled, as it rewrites the memory of its model; "
            "save the masks (PackedMasks.save) and make a new one for the copy"
        )


def _device_of(model: Model) -> torch.device:
    """The device of a model's tensors, which need not be that of the weights."""
    tensors = [model] if isinstance(model, Tensor) else list(model.values())
    floating = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    return floating[0].device if floating else torch.device("cpu")
