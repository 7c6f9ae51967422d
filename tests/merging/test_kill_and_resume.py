"""Merges from file to file that are killed (SIGKILL) end with the bytes of one that was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustcore.merging import merge

# Of 20 in all.
CASES = [
    # A journal of facts: histograms over the whole model before anything is written.
    ("ties", {"density": 0.3}, 7),
    # Ranked within tensors, one of which does not fit into the memory and has ties at its
    # threshold: slices depend on those before.
    ("ties", {"mode": "per_tensor", "density": 0.3}, 7),
    ("dare", {"density": 0.2, "rescale": "l1"}, 6),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 30 MB and three models, with magnitudes that occur thousands of times."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    shapes = {"embedding": (4000, 1000), "steps": (), "norm": (1000,)}
    shapes |= {f"layers.{layer}.weight": (700, 1000) for layer in range(5)}
    base = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    base = {key: (value * 64).round() / 64 for key, value in base.items()}
    base["steps"] = torch.tensor(7)
    save_file(base, folder / "model-0.safetensors")
    for task in range(1, 4):
        change = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        tuned = {
            key: value + (change[key] * 32).round() / 1024 if value.is_floating_point() else value
            for key, value in base.items()
        }
        save_file(tuned, folder / f"model-{task}.safetensors")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="forks, and kills by signal")
@pytest.mark.parametrize(("method", "options", "kills"), CASES)
def test_killed_at_random_moments(
    models: Path, method: str, options: dict[str, Any], kills: int
) -> None:
    script = Path(__file__).with_name("merge_with_kills.py")
    done = subprocess.run(
        [sys.executable, str(script), str(models), method, json.dumps(options), str(kills)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills
    assert found["resumed"] > 0
    assert found["completed"] == found["identical"] > 0


@pytest.mark.parametrize(("method", "options"), [case[:2] for case in CASES])
def test_killed_before_the_journal_goes(
    models: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    """The file has its final name, what says so is not on the disk yet."""
    files = sorted(models.glob("model-*.safetensors"))
    output = models / "named.safetensors"

    def run() -> None:
        merge(files[0], files[1:], method=method, output=output, max_memory=32 << 20, **options)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("robustcore.merging.output.writer.sync_folder", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (models / "named.safetensors.journal").exists()
    complete = output.read_bytes()
    run()
    assert output.read_bytes() == complete
    assert not (models / "named.safetensors.journal").exists()
    output.unlink()
