"""Which checkpoint a folder holds, by the names that Hugging Face gives them."""

from __future__ import annotations

import errno
import os

__all__ = ["weights_in"]

# The first kind that is there is taken: the rest holds the same weights in another format.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_ADAPTERS = (("adapter_model.safetensors",), ("adapter_model.bin",))
#: What makes a folder that of an adapter.
ADAPTER_CONFIG = "adapter_config.json"


def weights_in(folder: str) -> str:
    """The path of the file, of the index, or of the adapter's weights in a folder.

    safetensors files come before ``.bin`` files. A folder whose only weights are one other
    ``*.safetensors`` file or one ``*.safetensors.index.json`` will do.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not clear which; lists what was found.
    """
    names = sorted(os.listdir(folder))
    present = set(names)
    weights = _first(present, _WEIGHTS)
    adapters = _first(present, _ADAPTERS)
    found = weights + adapters
    if not found:
        indices = [name for name in names if name.endswith(".safetensors.index.json")]
        found = indices or [name for name in names if name.endswith(".safetensors")]
    if len(found) > 1:
        raise ValueError(
            f"{folder}: must hold one checkpoint, got {', '.join(found)}; name the file"
        )
    if not found:
        raise FileNotFoundError(
            errno.ENOENT,
            "the folder must hold model.safetensors, model.safetensors.index.json, "
            "pytorch_model.bin, pytorch_model.bin.index.json or adapter_model.safetensors",
            folder,
        )
    return os.path.join(folder, found[0])


def _first(present: set[str], kinds: tuple[tuple[str, ...], ...]) -> list[str]:
    for kind in kinds:
        if found := [name for name in kind if name in present]:
            return found
    return []
