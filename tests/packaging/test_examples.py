"""Every example that a reader can copy runs: docstrings of the package, and the README."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import robustcore

README = Path(__file__).resolve().parents[2] / "README.md"
# Entry points that do something when imported, and what needs extras.
SKIPPED = re.compile(r"robustcore\.(benchmarks|cli|demo)(\.|$)|\.__main__$")

MODULES = [
    info.name
    for info in pkgutil.walk_packages(robustcore.__path__, "robustcore.")
    if not SKIPPED.search(info.name) and not info.name.endswith("._C")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    outcome = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert outcome.failed == 0


def test_public_functions_have_examples() -> None:
    missing = []
    for family in ("losses", "merging", "pcr"):
        module = importlib.import_module(f"robustcore.{family}")
        for name in module.__all__:
            item = getattr(module, name)
            # Records speak for themselves.
            exempt = not callable(item) or is_dataclass(item) or issubclass_of_tuple(item)
            if not exempt and ">>>" not in (item.__doc__ or ""):
                missing.append(f"{family}.{name}")
    assert not missing, f"public names without a runnable example: {missing}"


def issubclass_of_tuple(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, tuple)


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", readme_blocks())
def test_readme_examples(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_has_an_example_for_each_family() -> None:
    text = "\n".join(readme_blocks())
    assert all(f"robustcore.{family}" in text for family in ("losses", "merging", "pcr"))


ROOT = README.parent
PAGES = sorted(path for path in ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    broken = [
        link for link in links if "://" not in link and not (page.parent / link).resolve().exists()
    ]
    assert not broken
