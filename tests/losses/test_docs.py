"""The Python code in the pages of the losses runs as it is pasted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGES = sorted((Path(__file__).parents[2] / "docs" / "losses").glob("*.md"))
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_pages_are_found() -> None:
    blocks = {page.stem: len(_BLOCK.findall(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert len(blocks) > 20
    for name in ("aldr_kl_loss", "early_learning_loss", "over_parameterized_loss", "tram"):
        assert blocks[name] > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page one after another, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        # As many lines before it as in the page, so that a traceback names the right one.
        lines = text.count("\n", 0, match.start(1))
        exec(compile("\n" * lines + match[1], str(page), "exec"), names)
