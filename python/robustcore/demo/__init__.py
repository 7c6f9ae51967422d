"""The main job of robustcore on real data: three small experiments and a report.

``robustcore demo`` (or :func:`run_demo`) trains, on a CPU and in a few minutes,

* :mod:`~robustcore.demo.noisy_labels`: digits whose labels come from unreliable annotators,
  cross-entropy against Pi-DUAL through :func:`robustcore.losses.gated_cross_entropy`;
* :mod:`~robustcore.demo.task_vectors`: one network fine-tuned on eight tasks, merged, and told
  apart again with :func:`robustcore.merging.tall_masks`;
* :mod:`~robustcore.demo.sequence_model`: a sequence model around a linear recurrence, with a
  Python loop and with :func:`robustcore.pcr.linear_recurrence`.

The images are the handwritten digits that ship with scikit-learn; nothing is downloaded.
The demo needs the extra ``robustcore[demo]`` (scikit-learn, matplotlib, rich); importing this
package does not.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_demo"]

_REQUIREMENTS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


def _require_extra() -> None:
    """Say in one line what to install when a package of the extra ``demo`` is missing."""
    missing = [module for module in _REQUIREMENTS if importlib.util.find_spec(module) is None]
    if missing:
        packages = ", ".join(_REQUIREMENTS[module] for module in missing)
        raise ModuleNotFoundError(
            f"run_demo: the demo needs {packages}; install with: pip install 'robustcore[demo]'",
            name=missing[0],
        )


def run_demo(
    output_dir: str | os.PathLike[str] = "demo-report",
    *,
    seeds: int = 5,
    quick: bool = False,
    json_path: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the three experiments, print a summary and write a self-contained HTML report.

    Arguments:
        output_dir: folder for ``index.html`` and ``results.json``. Created when it is missing;
            in an existing folder these two files are replaced and everything else is left alone.
        seeds: repetitions of the noisy-label experiment, at least 1. Each draws new annotators'
            mistakes and new initial weights.
        quick: a few epochs of everything, to see that it works; the numbers mean little.
        json_path: a further place for the results, the same content as ``results.json``.
        console: the :class:`rich.console.Console` for progress bars and the summary table;
            standard output by default.

    Returns:
        The results as JSON-compatible values: ``noisy_labels``, ``task_vectors``,
        ``sequence_model``, ``machine``, ``seconds`` and ``report`` (path of the HTML file).

    Raises:
        ModuleNotFoundError: a package of the extra ``demo`` is not installed.
        TypeError, ValueError: ``seeds`` is not an integer of at least 1.
        OSError: ``output_dir`` or ``json_path`` cannot be written. This is checked before any
            training.

    Files are written at the end, each under its final name only when it is complete, so that an
    error or Ctrl-C leaves nothing behind. Everything is seeded; training runs on one thread, so
    that the results do not depend on the number of cores. The caller's random state and thread
    count are restored.

    Example:
        >>> from robustcore.demo import run_demo
        >>> results = run_demo("demo-report", seeds=1, quick=True)  # doctest: +SKIP
        >>> results["noisy_labels"]["methods"]["pi_dual"]["test_accuracy"]["mean"]  # doctest: +SKIP
    """
    if not isinstance(seeds, int) or isinstance(seeds, bool):
        raise TypeError(f"run_demo: seeds must be an integer, got {type(seeds).__name__}")
    if seeds < 1:
        raise ValueError(f"run_demo: seeds must be at least 1, got {seeds}")
    _require_extra()
    from .run import run

    return run(output_dir, seeds=seeds, quick=quick, json_path=json_path, console=console)
