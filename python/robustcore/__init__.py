"""Fused CPU and CUDA operators for PyTorch: losses for noisy labels, model merging, parallel cyclic
reduction.

``losses``, ``merging`` and ``pcr`` hold the operators, ``reference`` the same functions in plain
PyTorch.
"""

from importlib.metadata import PackageNotFoundError, version

from . import _library, losses, merging, pcr, reference
from ._reference import use_reference

__all__ = ["__version__", "losses", "merging", "pcr", "reference", "use_reference"]

try:
    __version__ = version("robustcore")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = _library.core.build_information()["version"]
