"""Fixtures of the merging tests."""

from pathlib import Path

import pytest
from merging.mask_files import save_example


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_example(tmp_path / "tasks.masks")
    return tmp_path / "tasks.masks"
