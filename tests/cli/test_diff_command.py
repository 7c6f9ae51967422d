"""``robustcore diff``: tables, JSON, plot, exit codes."""

from __future__ import annotations

import builtins
import json

import pytest
from safetensors.torch import save_file

from robustcore.merging import compare

FILES = ("base.safetensors", "cars.safetensors")


def test_json_is_what_the_function_finds(command, folder, base, tasks):
    code, out, err = command("diff", *FILES, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == compare(base, tasks["cars"]).as_json()


def test_tables(command, folder, tasks):
    odd = {key: value for key, value in tasks["cars"].items() if key != "head.bias"}
    odd |= {"embed.weight": odd["embed.weight"][:9].clone(), "step": odd["step"] + 1}
    odd["more"] = odd["layers.0.weight"].clone()
    save_file(odd, "odd.safetensors")
    code, out, err = command("diff", "base.safetensors", "odd.safetensors", "--tensors", 2)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for says in (
        "layers.0 2,100 100 %",
        "total 6,300",
        "tensors: 2 of 3 that changed",
        "buffer step: 4 of 4 changed",
        "embed.weight: bfloat16 (50, 9) and bfloat16 (9, 9)",
        "only in A: head.bias",
        "only in B: more",
    ):
        assert says in text


def test_equal_models(command, folder):
    code, out, _ = command("diff", "base.safetensors", "base.safetensors", "--exit-code")
    assert (code, out) == (0, "equal: 6,761 parameters\n")
    assert command("diff", *FILES, "--exit-code")[0] == 1


def test_weights_that_are_not_finite_are_null_in_json(command, folder, tasks):
    tasks["cars"]["head.bias"][0] = float("nan")
    save_file(tasks["cars"], "nan.safetensors")
    code, out, _ = command("diff", "base.safetensors", "nan.safetensors", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["total"]["norm"] is None
    assert facts["total"]["nonfinite"] == 1
    code, out, _ = command("diff", "base.safetensors", "nan.safetensors")
    assert code == 0
    assert "not finite" in out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot(command, folder, suffix):
    code, _, err = command("diff", *FILES, "--plot", f"plot.{suffix}")
    assert (code, err) == (0, f"wrote plot.{suffix}\n")
    assert (folder / f"plot.{suffix}").stat().st_size > 1000


def test_a_plot_needs_matplotlib(command, folder, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    code, out, err = command("diff", *FILES, "--plot", "plot.png")
    assert (code, out) == (2, "")
    assert err == "robustcore: --plot needs matplotlib: pip install 'robustcore[analysis]'\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("base.safetensors", "none.pt"), "none.pt: no such checkpoint"),
        (("base.safetensors",), "Missing argument"),
        ((*FILES, "--plot", "plot.txt"), "--plot must end in .svg"),
        ((*FILES, "--plot", "no/plot.png"), "the folder of no/plot.png must exist"),
        ((*FILES, "--max-memory", "1KB"), "max_memory must be at least"),
        ((*FILES, "--max-memory", "x"), "--max-memory must be a size"),
    ],
)
def test_errors_are_one_line(command, folder, arguments, says):
    code, out, err = command("diff", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("robustcore: ")
    assert err.count("\n") == 1
    assert says in err
