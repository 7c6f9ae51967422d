"""The CUDA kernel of aldr_kl_temperature, on the host, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches
from robustcore.testing.samples_losses import aldr_kl_temperature

SAMPLES = list(aldr_kl_temperature.samples())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_new_temperatures(simt: Executor, sample: Sample, dtype: torch.dtype) -> None:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    options = dict(sample.kwargs)
    logits = sample.args[0].movedim(options.pop("dim", -1), -1).contiguous().to(dtype)
    lam = sample.args[1].to(compute)
    rows, classes = logits.shape
    result = torch.empty(rows, dtype=compute)
    simt.run(
        "aldr_kl_temperature",
        logits=logits,
        second=None,
        row_value=lam,
        row_value2=None,
        row_value3=None,
        target=torch.zeros(rows, dtype=torch.int64),
        soft_target=None,
        weight=None,
        sample_weight=None,
        rows=rows,
        classes=classes,
        ignore_index=-100,
        label_smoothing=0.0,
        temperature=1.0,
        softcap=0.0,
        lse_square=0.0,
        parameter0=options.get("alpha", 2.0),
        parameter1=options.get("lambda0", 10.0),
        parameter2=0.0,
        parameter3=0.0,
        reduction=0,
        denominator=torch.empty(1, dtype=compute),
        loss=result,
    )
    expected = reference.aldr_kl_temperature(logits.double(), lam.double(), **options)
    precision = 1e-12 if dtype == torch.float64 else 5e-6
    assert_matches(result, expected, rtol=precision, atol=precision)
