"""The fixture `simt`: the host executor, built once per session."""

import pytest

from simt.harness import Executor, build, load_module


@pytest.fixture(scope="session")
def simt() -> Executor:
    return Executor(load_module(build()))
