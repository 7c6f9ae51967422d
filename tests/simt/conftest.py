"""The fixture `simt` (the host executor, built once per session) and the order of the tests."""

from pathlib import Path

import pytest
from simt.harness import Executor, build, load_module

FOLDER = Path(__file__).resolve().parent
COMPARES_SESSION = "test_python_tests_run_every_kernel"


@pytest.fixture(scope="session")
def simt() -> Executor:
    return Executor(load_module(build()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the test that looks back on the session behind all others."""
    items.sort(key=lambda item: item.name == COMPARES_SESSION)


@pytest.fixture
def left_out(request: pytest.FixtureRequest) -> list[str]:
    """The test files of this folder of which the session runs nothing or only a selection."""
    selected = {item.path for item in request.session.items}
    missing = [
        str(path.relative_to(FOLDER))
        for path in sorted(FOLDER.rglob("test_*.py"))
        if path not in selected
    ]
    option = request.config.option
    narrowed = option.keyword or option.markexpr or any("::" in text for text in option.file_or_dir)
    split = hasattr(request.config, "workerinput")
    return (
        missing
        or (["what -k, -m or node names exclude"] if narrowed else [])
        or (["what other processes of pytest-xdist run"] if split else [])
    )
