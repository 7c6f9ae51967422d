"""The examples in the documentation of robustcore.pcr."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["layer", "linear_recurrence"])
def test_examples(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"robustcore.pcr.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
