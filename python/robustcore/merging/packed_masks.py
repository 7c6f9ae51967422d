"""Packed masks: one bit per parameter and task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._library import functorch_active
from ._operators import implementation, refuse_tangents
from ._overwriting import overlapping, refuse_overwriting
from .state_dict import FlatLayout, Model, matching_tensors
from .task_vectors import widened

__all__ = ["PackedMasks", "pack_mask"]


def pack_mask(kept: Tensor) -> Tensor:
    """A bool tensor [P] as int64 words: bit ``i`` of word ``w`` is element ``64 w + i``."""
    padded = torch.nn.functional.pad(kept.to(torch.uint8), (0, -kept.numel() % 64))
    bits = padded.view(-1, 8)
    packed = bits[:, 0].clone()
    for bit in range(1, 8):
        packed |= bits[:, bit] << bit
    return packed.view(torch.int64) if kept.numel() else torch.empty(0, dtype=torch.int64)


class PackedMasks:
    """One packed mask per task over the P parameters of a model.

    Made by :meth:`TallMasks.select`, :meth:`consensus` and :meth:`load`. All methods work on the
    packed words; only :meth:`unpack` and :meth:`counts` return something of size P.

    Attributes:
        words: int64 [T, words]: bit ``i`` of word ``w`` is parameter ``64 w + i`` of the flat
            order, so that on a little-endian machine bit ``i`` of byte ``j`` is parameter
            ``8 j + i``. Bits past the last parameter are 0.
        tasks: The names of the tasks.
        layout: Keys, shapes and dtypes of the flat order (floating-point tensors sorted by name,
            each row-major), and the skipped buffers.
        lambdas: λ of each task; for a consensus those of the masks it was made from. Or None, as
            for a consensus of a consensus.
        comparison: ``"strict"`` or ``"paper"``.
        k: For a consensus: how many masks had to keep a parameter. Else None.
        sources: For a consensus: the tasks that it was made from. Else empty.

    Example:
        >>> import torch
        >>> from robustcore.merging import tall_masks, multi_task_vector
        >>> base = torch.zeros(3)
        >>> tasks = [torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])]
        >>> masks = tall_masks(base, tasks).select(0.4)
        >>> masks.histogram()
        tensor([0, 2, 1])
        >>> masks.apply(1, base, multi_task_vector(base, tasks))
        tensor([0., 2., 2.])
        >>> masks.consensus(2).unpack(0)
        tensor([False, False,  True])
    """

    def __init__(
        self,
        words: Tensor,
        layout: FlatLayout,
        tasks: Sequence[str],
        *,
        lambdas: tuple[float, ...] | None = None,
        comparison: str = "strict",
        k: int | None = None,
        sources: tuple[str, ...] = (),
    ) -> None:
        op = "PackedMasks"
        self.layout = layout
        self.tasks = tuple(tasks)
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"{op}: tasks must have distinct names, got {list(self.tasks)}")
        shape = (len(self.tasks), (layout.num_parameters + 63) // 64)
        if not isinstance(words, Tensor) or words.dtype != torch.int64:
            found = words.dtype if isinstance(words, Tensor) else type(words).__name__
            raise TypeError(f"{op}: words must be an int64 tensor, got {found}")
        if tuple(words.shape) != shape:
            raise ValueError(f"{op}: words must have shape {shape}, got {tuple(words.shape)}")
        self.words = words.contiguous()
        self.lambdas = None if lambdas is None else tuple(float(value) for value in lambdas)
        self.comparison = comparison
        self.k = k
        self.sources = sources
        self._positions = {name: index for index, name in enumerate(self.tasks)}

    def __repr__(self) -> str:
        return (
            f"PackedMasks(tasks={list(self.tasks)}, num_parameters={self.num_parameters}, "
            f"lambdas={self.lambdas}, device={self.words.device})"
        )

    @property
    def num_parameters(self) -> int:
        """P, the number of parameters of a model."""
        return self.layout.num_parameters

    @property
    def nbytes(self) -> int:
        """Bytes of the packed words."""
        return self.words.numel() * self.words.element_size()

    @property
    def packed(self) -> Tensor:
        """A view as uint8 [T, ceil(P / 8)]: bit ``i`` of byte ``j`` is parameter ``8 j + i``."""
        return self.words.view(torch.uint8)[:, : (self.num_parameters + 7) // 8]

    def unpack(self, task: int | str) -> Tensor:
        """The mask of one task, by index or name: bool [P] in flat order."""
        row = self.words[self._index("PackedMasks.unpack", task)]
        return implementation(row).mask_unpack(row, self.num_parameters)

    def counts(self) -> Tensor:
        """How many tasks keep each parameter, int32 [P] in flat order."""
        return implementation(self.words).mask_counts(self.words, self.num_parameters)

    def histogram(self) -> Tensor:
        """How many parameters are kept by exactly 0, 1, ..., T tasks, int64 [T + 1].

        Those that none keeps are the catastrophic weights, those that one keeps the selfish ones.
        """
        return implementation(self.words).mask_histogram(self.words, self.num_parameters)

    def overlap(self) -> Tensor:
        """How many parameters each pair of tasks keeps, int64 [T, T]; on the diagonal each task."""
        return implementation(self.words).mask_overlap(self.words)

    def consensus(self, k: int) -> PackedMasks:
        r"""What at least k tasks keep: :math:`\mathbf 1\{\sum_t m_t \ge k\}`

        With k = 2 it drops catastrophic and selfish weights; the merged model is
        :math:`\theta_0 + \alpha\, m \odot \tau_M`. Counting is bit-sliced, nothing is unpacked.

        Args:
            k: From 1 (kept by any task) to T (kept by all).

        Returns:
            Masks with a single entry, "consensus".
        """
        op = "PackedMasks.consensus"
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"{op}: k must be an integer, got {type(k).__name__}")
        if not 1 <= k <= len(self.tasks):
            raise ValueError(f"{op}: k must be from 1 to {len(self.tasks)}, got {k}")
        words = implementation(self.words).mask_consensus(self.words, k)
        return PackedMasks(
            words.unsqueeze(0),
            self.layout,
            ("consensus",),
            # A consensus of a consensus: its λ are those of masks that are not its sources.
            lambdas=None if len(self.lambdas or ()) != len(self.tasks) else self.lambdas,
            comparison=self.comparison,
            k=k,
            sources=self.tasks,
        )

    def apply(
        self, task: int | str, base: Model, merged: Model, *, inplace: bool = False
    ) -> Tensor | dict[str, Tensor]:
        r"""The reconstruction of one task: :math:`\theta_0 + m_t \odot \tau_M`

        Args:
            task: Index or name of the task.
            base: :math:`\theta_0`, a model of this layout on the device of the masks.
            merged: :math:`\tau_M`, task vector tensors in the dtype of the base or in that of
                computation; :func:`multi_task_vector` makes one. Buffers in it are not looked at.
            inplace: Write into the tensors of ``base`` and return it.

        Returns:
            A tensor or a dict like ``base``, in its dtypes and order; buffers that are not floating
            point are copies of those of the base. Differentiable for ``base`` and ``merged`` to any
            order unless ``inplace``.

        Raises:
            TypeError: An argument is not a model.
            NotImplementedError: A tensor carries a forward-mode tangent.
            IndexError: There is no such task.
            ValueError: Models do not match (one message lists all differences). With ``inplace``
                also: tensors require grad while gradients are recorded; the call is inside
                torch.func; tensors of ``base`` cannot be overwritten, because they share memory
                with ``merged``, with one another and have unequal results, or with themselves
                (expanded), or are inference tensors outside inference mode. Nothing is changed
                then.

        Numerics: one addition in float32 (float64 for float64), rounded to the dtype of the base.
        Where the bit is 0 the base is kept bit for bit, NaN and -0 included.
        """
        op = "PackedMasks.apply"
        mask = self.words[self._index("PackedMasks.apply", task)]
        tensors = matching_tensors(
            op,
            self.layout,
            mask.device,
            {"base": base, "merged": merged},
            vectors=frozenset({"merged"}),
        )
        starts = tensors["base"]
        refuse_tangents(op, [*starts, *tensors["merged"]])
        if inplace:
            self._apply_inplace(op, mask, starts, tensors["merged"])
            return base  # type: ignore[return-value]
        changes = widened(tensors["merged"], starts)
        results = implementation(mask).mask_apply(starts, changes, mask) if starts else []
        if isinstance(base, Tensor):
            return results[0]
        by_key = dict(zip(self.layout.keys, results, strict=True))
        return {key: by_key[key] if key in by_key else base[key].clone() for key in base}

    def _apply_inplace(
        self, op: str, mask: Tensor, starts: list[Tensor], merged: list[Tensor]
    ) -> None:
        tensors = [*starts, *merged]
        if not torch.compiler.is_compiling() and functorch_active():
            raise ValueError(f"{op}: inplace must be False inside torch.func, got True")
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise ValueError(
                f"{op}: inplace must be False where tensors require grad and gradients are "
                "recorded, got True; use torch.no_grad() to overwrite them"
            )
        if not starts:
            return
        eager = not torch.compiler.is_compiling()
        if (
            eager
            and not torch.is_inference_mode_enabled()
            and any(t.is_inference() for t in starts)
        ):
            raise ValueError(
                f"{op}: base must not hold inference tensors where inplace is True outside of "
                "torch.inference_mode()"
            )
        has_addresses = eager and mask.device.type != "meta"
        functions = implementation(mask)
        changes = widened(merged, starts)
        if has_addresses and all(t.is_contiguous() for t in starts):
            groups = overlapping([*starts, *merged])
            if all(len(group) == 1 or min(group) >= len(starts) for group in groups):
                functions.mask_apply_(starts, changes, mask)
                return
        # Tied or strided tensors: all results come from the old values before any is overwritten.
        results = functions.mask_apply(starts, changes, mask)
        if has_addresses:
            refuse_overwriting(op, starts, merged, results)
        for start, result in zip(starts, results, strict=True):
            start.copy_(result)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        base: Model | None = None,
        merged: Model | None = None,
        embed: bool = False,
    ) -> None:
        """Writes a safetensors file with one uint8 tensor per task, at once or not at all.

        Args:
            path: The file; an existing one is replaced when the new one is complete.
            base: :math:`\\theta_0`: its SHA-256 goes into the file, and :meth:`load` can check it.
            merged: :math:`\\tau_M`: the same.
            embed: Also store the tensors of ``base`` and ``merged``, whichever is given, and the
                integer and boolean buffers of ``base``.

        Raises:
            ValueError: A model does not match the layout, ``embed`` without any model, a name that
                is not Unicode text, masks whose ``lambdas``, ``k`` or ``sources`` contradict one
                another, or a path at which there is something that is not a file.
            OSError: The file cannot be written. Nothing is left behind.
        """
        from .mask_file import write_mask_file

        write_mask_file(self, path, base=base, merged=merged, embed=embed)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        base: Model | None = None,
        merged: Model | None = None,
    ) -> PackedMasks:
        """Reads a file that :meth:`save` wrote, onto the CPU.

        Metadata, names, shapes and lengths are checked before anything of their size is allocated.

        Args:
            path: The file.
            base: If given, it must be the model whose SHA-256 the file holds.
            merged: The same for the multi-task vector.

        Raises:
            ValueError: The file is not one of these, is truncated, damaged or inconsistent, or a
                model is not the one it was made for; the message names file and fault.
            OSError: The file cannot be read.
        """
        from .mask_file import read_mask_file

        return read_mask_file(path, base=base, merged=merged).masks

    def to(self, device: Any) -> PackedMasks:
        """The same masks on another device."""
        return PackedMasks(
            self.words.to(device),
            self.layout,
            self.tasks,
            lambdas=self.lambdas,
            comparison=self.comparison,
            k=self.k,
            sources=self.sources,
        )

    def _index(self, op: str, task: int | str) -> int:
        """The row of a task, given by index or name; errors are those of ``op``."""
        if isinstance(task, str):
            if task not in self._positions:
                raise IndexError(f"{op}: task must be one of {list(self.tasks)}, got {task!r}")
            return self._positions[task]
        if isinstance(task, bool) or not isinstance(task, int):
            raise TypeError(f"{op}: task must be an index or a name, got {type(task).__name__}")
        if not 0 <= task < len(self.tasks):
            raise IndexError(f"{op}: task must be from 0 to {len(self.tasks) - 1}, got {task}")
        return task
