"""DELLA: the chance to stay goes by the rank of a magnitude in its row."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference.merging import random_words
from ..recipe import Drop, Rescale
from .pieces import Pieces

__all__ = ["ranked_drop"]


def ranked_drop(pieces: Pieces, drop: Drop, rescale: Rescale) -> Pieces:
    """The pieces with task vectors of which entries were dropped, in float32 or float64.

    Entries of a row are ranked by magnitude, those of equal magnitude by position. Rank r of n has
    the chance density - epsilon + 2 epsilon r / (n - 1) to stay; a row of one entry is kept. With
    :attr:`Rescale.DENSITY` what stays is divided by its chance. Random words are those of the
    kernel: a function of seed, task and flat index.
    """
    tasks: list[Tensor] = []
    for task in range(pieces.task_count):
        for piece, values in zip(pieces.slices, pieces.task_vectors(task), strict=True):
            shape = piece.tensor.shape
            width = shape[-1] if len(shape) > 1 else piece.tensor.numel
            if width <= 1:
                tasks.append(values)
                continue
            rows = values.reshape(-1, width)
            order = rows.abs().argsort(dim=1, stable=True)
            ranks = torch.empty_like(order)
            places = torch.arange(width, device=order.device).expand_as(order)
            ranks.scatter_(1, order, places)
            assert drop.epsilon is not None
            chance = (drop.density - drop.epsilon) + 2 * drop.epsilon / (width - 1) * ranks.double()
            start = piece.tensor.flat_start + piece.start
            words = random_words(drop.seed, task, start, values.numel()).to(order.device)
            stays = words.view_as(ranks) < (chance * 2.0**32).to(torch.int64)
            kept = rows.where(stays, 0)
            if rescale is Rescale.DENSITY:
                kept = kept / chance.to(kept.dtype)
            tasks.append(kept.reshape(-1))
    return Pieces(pieces.slices, pieces.base, tasks, [1] * pieces.task_count)
