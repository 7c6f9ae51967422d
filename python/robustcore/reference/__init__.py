"""Plain PyTorch versions of every public function: same names, same signatures.

They read like the formulas, run in any dtype that PyTorch computes in, are differentiable to any
order, and serve as the oracle of the tests, as the fallback on devices without kernels, and under
:func:`robustcore.use_reference`.
"""

from . import losses, merging, pcr, random

__all__ = ["losses", "merging", "pcr", "random"]
