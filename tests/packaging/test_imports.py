"""What importing robustcore needs, and what it does not."""

from __future__ import annotations

import subprocess
import sys

import robustcore
from robustcore._library import core

# Hides modules as if they were not installed.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


# Only the command, the demo and the tests need these.
HIDDEN = {"sklearn", "matplotlib", "rich", "typer", "yaml", "scipy", "hypothesis", "pytest"}


def test_import_without_optional_packages() -> None:
    code = HIDE.format(hidden=HIDDEN) + (
        "import torch, robustcore\n"
        "from robustcore import losses, pcr, reference\n"
        "a = torch.rand(2, 3, 4)\n"
        "print(robustcore.pcr.linear_recurrence(a, a).shape)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 3, 4])" in done.stdout


def test_import_needs_no_compiler_and_no_gpu() -> None:
    code = "import robustcore; print(robustcore.__version__)"
    done = run(code, PATH="/nonexistent", CUDA_VISIBLE_DEVICES="", CC="false", CXX="false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == robustcore.__version__


def test_import_does_not_load_heavy_modules() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); import robustcore\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'sklearn', 'matplotlib', 'rich', 'typer', 'scipy', 'pandas'}))\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_library_needs_no_cuda_library() -> None:
    """Its dynamic section names neither a CUDA runtime nor torch's CUDA libraries."""
    listing = subprocess.run(["ldd", core.__file__], capture_output=True, text=True, check=True)
    names = listing.stdout.lower()
    assert not any(word in names for word in ("libcudart", "libcuda.so", "torch_cuda", "c10_cuda"))


def test_build_information() -> None:
    facts = core.build_information()
    assert facts["version"] == robustcore.__version__
    assert isinstance(facts["cuda"], bool)
    assert bool(facts["cuda_architectures"]) == facts["cuda"]
