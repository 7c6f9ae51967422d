"""What an adapter_config.json says about the size of each update."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["LoraConfig"]

# Initializations under which the difference from the base is what the factors say.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
# Settings under which an adapter is more than the products of its factors.
_UNSUPPORTED = (
    ("use_dora", "DoRA normalizes the merged weight"),
    ("use_qalora", "its factors belong to groups of quantized columns"),
    ("layer_replication", "it repeats layers of the base"),
    ("alora_invocation_tokens", "it acts after some tokens only"),
    ("trainable_token_indices", "it replaces rows of an embedding"),
    ("target_parameters", "it changes parameters that are not weights of layers"),
)


class LoraConfig:
    """The part of an adapter's configuration that decides what is added to the base.

    The update of a layer is ``scaling * B @ A`` with ``scaling = lora_alpha / r``, or
    ``lora_alpha / sqrt(r)`` with ``use_rslora``; ``rank_pattern`` and ``alpha_pattern`` give single
    layers another ``r`` or ``lora_alpha``.

    Attributes:
        fan_in_fan_out: The base stores weights as (inputs, outputs).
        modules_to_save: Layers that the adapter replaces as a whole.

    Raises:
        ValueError: A setting that is missing, of the wrong type, or cannot be merged.
    """

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name = name
        self._config = config
        kind = config.get("peft_type")
        if kind != "LORA":
            self._fail("peft_type", "'LORA'", kind)
        for field, reason in _UNSUPPORTED:
            if config.get(field):
                raise ValueError(
                    f"{name}: {field} must be unset, got {config[field]!r}: {reason}, so that the "
                    "adapter is no sum of products; merge it into its base first"
                )
        start = config.get("init_lora_weights", True)
        if isinstance(start, str) and start not in _INITIALIZATIONS:
            raise ValueError(
                f"{name}: init_lora_weights must be one that leaves the base as it is, got "
                f"{start!r}; save the adapter with path_initial_model_for_weight_conversion first"
            )
        bias = config.get("bias", "none")
        if bias not in ("none", None) or config.get("lora_bias"):
            self._fail("bias", "'none', and lora_bias False", bias)
        self.fan_in_fan_out = bool(config.get("fan_in_fan_out", False))
        self.modules_to_save = tuple(config.get("modules_to_save") or ())
        self._rslora = bool(config.get("use_rslora", False))
        self._rank = self._number("r", config.get("r"))
        self._alpha = self._number("lora_alpha", config.get("lora_alpha"))
        self._ranks = self._pattern("rank_pattern")
        self._alphas = self._pattern("alpha_pattern")

    def _fail(self, field: str, expected: str, got: Any) -> None:
        raise ValueError(f"{self.name}: {field} must be {expected}, got {got!r}")

    def _number(self, field: str, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or (field.startswith("r") and value <= 0):
            self._fail(field, "a number", value)
        return float(value)

    def _pattern(self, field: str) -> dict[str, float]:
        pattern = self._config.get(field) or {}
        if not isinstance(pattern, dict):
            self._fail(field, "numbers by pattern", pattern)
        return {key: self._number(field, value) for key, value in pattern.items()}

    def rank(self, layer: str) -> float:
        return self._of(layer, self._ranks, self._rank)

    def scaling(self, layer: str) -> float:
        """What the product of a layer's factors is multiplied by."""
        rank, alpha = self.rank(layer), self._of(layer, self._alphas, self._alpha)
        return alpha / math.sqrt(rank) if self._rslora else alpha / rank

    def _of(self, layer: str, patterns: Mapping[str, float], default: float) -> float:
        """A pattern matches the end of a layer's name, from a dot on."""
        for pattern, value in patterns.items():
            try:
                if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer):
                    return value
            except re.error as error:
                raise ValueError(
                    f"{self.name}: a pattern must be a regular expression, got {pattern!r}: {error}"
                ) from None
        return default
