"""Robust weight signatures: what makes a model robust, small enough to keep (arXiv 2302.12480)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .._checks import check_choice
from ._atomic_file import atomic_file
from .checkpoints import StateDictCheckpoint
from .merge import merge
from .pipeline import TaskVectors
from .quantization import SCHEMES, QuantizedTensor, quantize

__all__ = ["WeightSignature", "robust_weight_signature"]

_FORMAT = "robustcore.weight_signature.1"


@dataclass(frozen=True)
class WeightSignature:
    """Quantised task vectors of some tensors, to be added to other models of the same architecture.

    Attributes:
        tensors: The quantised vectors by key.
    """

    tensors: Mapping[str, QuantizedTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and their ranges."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def vector(self) -> dict[str, Tensor]:
        """The task vectors, float32."""
        return {key: tensor.dequantize() for key, tensor in self.tensors.items()}

    def apply(self, model: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        r"""The model plus the signature: :math:`\theta + s\,v`; tensors without one are kept.

        Raises:
            ValueError: The model lacks a tensor of the signature, or has another shape.
        """
        op = "WeightSignature.apply"
        problems = []
        for key, tensor in self.tensors.items():
            if key not in model:
                problems.append(f"  model[{key!r}] is missing")
            elif tuple(model[key].shape) != tensor.shape:
                found = tuple(model[key].shape)
                problems.append(f"  model[{key!r}] must have shape {tensor.shape}, got {found}")
        if problems:
            raise ValueError("\n".join([f"{op}: the model must match the signature:", *problems]))
        vector = StateDictCheckpoint("signature", self.vector(), is_task_vector=True)
        merged = merge(model, {"signature": vector}, method="task_arithmetic", scale=scale)
        assert isinstance(merged, dict)
        return merged

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, complete or not at all."""
        tensors = {f"codes/{key}": tensor.codes for key, tensor in self.tensors.items()}
        described = {key: tensor.description() for key, tensor in self.tensors.items()}
        metadata = {"format": _FORMAT, "tensors": json.dumps(described, allow_nan=False)}
        with atomic_file(path) as file:
            file.write(save(tensors, metadata))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WeightSignature:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: It is not a complete file of this kind.
        """
        op, name = "WeightSignature.load", os.fspath(path)
        with open(name, "rb"):  # a missing file is an OSError with its own message
            pass
        try:
            with safe_open(name, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    found = metadata.get("format")
                    raise ValueError(f"{op}: {name} must have the format {_FORMAT}, got {found!r}")
                described = json.loads(metadata["tensors"])
                return WeightSignature(
                    {
                        key: QuantizedTensor.described(file.get_tensor(f"codes/{key}"), entry)
                        for key, entry in described.items()
                    }
                )
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{op}: {name} is no complete signature: {error}") from None


def robust_weight_signature(
    base: Mapping[str, Tensor],
    robust: Mapping[str, Tensor],
    clean: Mapping[str, Tensor],
    *,
    keys: str | Sequence[str] | None = None,
    bits: int = 8,
    scheme: str = "linear",
) -> WeightSignature:
    r"""What robust training changed and ordinary training does not.

    .. math::
        v = \tau_{robust} - \frac{\langle \tau_{robust}, \tau_{clean} \rangle}
                                  {\|\tau_{clean}\|^2}\, \tau_{clean}

    tensor by tensor, quantised to :math:`2^{bits}` levels.

    Args:
        base: The model that both were trained from.
        robust, clean: The models after robust and after ordinary training.
        keys: The tensors to keep: a regular expression that is searched in their names, or their
            names. The published signatures are of shallow layers only. By default all.
        bits: 1, 2, 4 or 8.
        scheme: Where levels lie between the smallest and the largest entry of a tensor: evenly
            (``"linear"``), or denser around 0 (``"log"``, ``"tanh"``); :class:`.QuantizedTensor`.

    Raises:
        ValueError: Models do not match, ``keys`` finds nothing, an option is out of range.

    Source: Zhu et al., Robust weight signatures, arXiv 2302.12480.

    Example:
        >>> import torch
        >>> from robustcore.merging import robust_weight_signature
        >>> base = {"w": torch.zeros(2)}
        >>> robust, clean = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 0.0])}
        >>> robust_weight_signature(base, robust, clean).apply(base)["w"]
        tensor([0., 2.])
    """
    op = "robust_weight_signature"
    check_choice(op, "bits", bits, (1, 2, 4, 8))
    check_choice(op, "scheme", scheme, tuple(SCHEMES))
    vectors = TaskVectors(base, {"robust": robust, "clean": clean}).using("rws").vector()
    chosen = _chosen(op, list(vectors), keys)
    return WeightSignature({key: quantize(vectors[key], bits, scheme) for key in chosen})


def _chosen(op: str, present: list[str], keys: Any) -> list[str]:
    if keys is None:
        return present
    if isinstance(keys, str):
        try:
            found = [key for key in present if re.search(keys, key)]
        except re.error as error:
            raise ValueError(f"{op}: keys must be a regular expression: {error}") from None
    else:
        found = list(keys)
        unknown = [key for key in found if key not in present]
        if unknown:
            raise ValueError(f"{op}: keys must name tensors of base, got {unknown}")
    if not found:
        raise ValueError(f"{op}: keys must find at least one tensor, got {keys!r}")
    return found
