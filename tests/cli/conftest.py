"""Running commands, and models in files for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustcore.cli import main as cli

Command = Callable[..., tuple[int, str, str]]
StateDict = dict[str, torch.Tensor]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line: its exit code, what it prints, and what it says on stderr."""
    monkeypatch.delenv("ROBUSTCORE_DEBUG", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def perturbed(base: StateDict, seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in base.items()
    }


@pytest.fixture
def base() -> StateDict:
    generator = torch.Generator().manual_seed(0)
    model = {f"layers.{i}.weight": torch.randn(30, 70, generator=generator) for i in range(3)}
    model["embed.weight"] = torch.randn(50, 9, generator=generator).bfloat16()
    return model | {"head.bias": torch.randn(11, generator=generator), "step": torch.arange(4)}


@pytest.fixture
def tasks(base: StateDict) -> dict[str, StateDict]:
    return {name: perturbed(base, seed) for seed, name in enumerate(("cars", "digits", "signs"), 1)}


@pytest.fixture
def folder(
    tmp_path: Path,
    base: StateDict,
    tasks: dict[str, StateDict],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working directory, with base.safetensors and a file for each task."""
    monkeypatch.chdir(tmp_path)
    for name, model in {"base": base, **tasks}.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    return tmp_path


def is_error_line(err: str) -> bool:
    return err.splitlines()[-1].startswith("robustcore: ") and "Traceback" not in err
