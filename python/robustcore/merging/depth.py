"""Which block of a network a tensor belongs to, for scaling by depth (LiNeS)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["BlockMap", "depth_scales", "find_blocks", "layer_names"]

# Names that transformers and residual networks give to their stacks. A number below anything else
# (``mlp.0``, ``classifier.2``) is not a block.
_STACKS = "layers|layer|blocks|block|resblocks|h|encoder_layers|transformer_blocks"
_NUMBERED = re.compile(rf"^(?P<stack>(?:.*\.)?(?:{_STACKS}))\.(?P<number>\d+)(?:\.|$)")
# ResNets: layer1.0 ... layer4.2 is one stack in two levels.
_STAGED = re.compile(
    r"^(?P<stack>(?:.*\.)?(?:layer|stage|stages\.))(?P<stage>\d+)\.(?P<number>\d+)\."
)


@dataclass(frozen=True)
class BlockMap:
    """Blocks of a network.

    Attributes:
        block_of: The index, from 0, of each key that belongs to a block.
        names: What each block is called in keys.
    """

    block_of: Mapping[str, int]
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.names)


def find_blocks(op: str, keys: Iterable[str], pattern: str | None = None) -> BlockMap:
    """The blocks of a network from the names of its tensors.

    Args:
        pattern: A regular expression, searched in every key, whose first group is the number of the
            block. By default the usual names of stacks are recognised.

    Raises:
        ValueError: There is no block, only one, or more than one stack of them.
    """
    keys = list(keys)
    placed = _by_pattern(op, keys, pattern) if pattern is not None else _by_names(op, keys)
    order = sorted(set(placed.values()))
    if len(order) < 2:
        raise ValueError(
            f"{op}: blocks must be at least 2 to scale by depth, got {len(order)}: "
            "depth is l / (L - 1); give a pattern whose first group is the number of the block"
        )
    index = {place: number for number, place in enumerate(order)}
    names = tuple(".".join(map(str, place)) for place in order)
    return BlockMap({key: index[place] for key, place in placed.items()}, names)


def _by_pattern(op: str, keys: list[str], pattern: str) -> dict[str, tuple[int, ...]]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{op}: blocks must be a regular expression: {error}") from None
    if compiled.groups != 1:
        raise ValueError(f"{op}: blocks must have one group, the number, got {compiled.groups}")
    placed: dict[str, tuple[int, ...]] = {}
    for key in keys:
        match = compiled.search(key)
        if match and match[1] is not None:
            if not match[1].isdigit():
                raise ValueError(
                    f"{op}: the group of blocks must match a number, got {match[1]!r} in {key!r}"
                )
            placed[key] = (int(match[1]),)
    return placed


def _by_names(op: str, keys: list[str]) -> dict[str, tuple[int, ...]]:
    stacks: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in keys:
        staged = _STAGED.match(key)
        numbered = _NUMBERED.match(key)
        if staged:
            place: tuple[int, ...] = (int(staged["stage"]), int(staged["number"]))
            stacks.setdefault(staged["stack"] + "N", {})[key] = place
        elif numbered:
            stacks.setdefault(numbered["stack"], {})[key] = (int(numbered["number"]),)
    if len(stacks) > 1:
        raise ValueError(
            f"{op}: the blocks are ambiguous, found the stacks {sorted(stacks)}; give a pattern "
            "whose first group is the number of the block"
        )
    return next(iter(stacks.values()), {})


def depth_scales(
    op: str, keys: Iterable[str], alpha: float, beta: float, pattern: str | None = None
) -> dict[str, float]:
    """alpha + beta l / (L - 1) for the keys of block l, alpha for all others."""
    keys = list(keys)
    blocks = find_blocks(op, keys, pattern)
    scales = dict.fromkeys(keys, alpha)
    for key, block in blocks.block_of.items():
        scales[key] = alpha + beta * block / (blocks.count - 1)
    return scales


def layer_names(keys: Iterable[str]) -> dict[str, str]:
    """The layer of each key, in the order of their numbers: for a tensor in a block the name of the
    block (``encoder.layer.3``), for any other that of its module."""
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    for key in keys:
        staged, numbered = _STAGED.match(key), _NUMBERED.match(key)
        if staged:
            places[key] = (staged["stack"], (int(staged["stage"]), int(staged["number"])))
        elif numbered:
            places[key] = (numbered["stack"] + ".", (int(numbered["number"]),))
        else:
            places[key] = (key.rpartition(".")[0] or key, ())
    ordered = sorted(places, key=lambda key: (*places[key], key))
    return {key: places[key][0] + ".".join(map(str, places[key][1])) for key in ordered}
