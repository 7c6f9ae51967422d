"""The layers of a comparison as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .output import CommandError

__all__ = ["check_plot", "plot_comparison"]

_FORMATS = (".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """CommandError unless :func:`plot_comparison` can write ``path``."""
    if path.suffix.lower() not in _FORMATS:
        raise CommandError(f"--plot must end in {', '.join(_FORMATS)}, got {path.name!r}")
    if not path.resolve().parent.is_dir():
        raise CommandError(f"--plot: the folder of {path} must exist")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise CommandError("--plot needs matplotlib: pip install 'robustcore[analysis]'") from None


def plot_comparison(found: Any, path: Path) -> None:
    """Bars for each layer: relative norm of the difference, and share of weights that changed."""
    from matplotlib.figure import Figure

    layers = found.layers
    names = [layer.name or "(weights)" for layer in layers]
    # Figure, not pyplot: no display and no global state.
    figure = Figure(figsize=(9.0, 1.2 + 0.24 * max(4, len(names))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    relative = [
        layer.relative_norm if math.isfinite(layer.relative_norm) else 0.0 for layer in layers
    ]
    left.barh(names, relative, color="#4c72b0")
    left.set(xlabel="‖b − a‖ / ‖a‖")
    left.invert_yaxis()
    right.barh(names, [layer.density for layer in layers], color="#dd8452")
    right.set(xlabel="share of weights that changed", xlim=(0, 1))
    for axis in (left, right):
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)
