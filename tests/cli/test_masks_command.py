"""``robustcore masks``: the same masks as in memory, made, shown, applied and taken apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustcore.merging import (
    PackedMasks,
    multi_task_vector,
    read_mask_file,
    tall_masks,
)

FILES = ("base.safetensors", "cars.safetensors", "digits.safetensors", "signs.safetensors")
NAMES = ("cars", "digits", "signs")


def one_line(err):
    return err.startswith("robustcore: ") and err.count("\n") == 1


@pytest.fixture
def built(command, folder):
    code, _, err = command(
        *("masks", "build", *FILES, "-o", "masks.st", "--merged-output", "tau.safetensors"),
        *("--select", "cars=0.2,digits=0.4,signs=0.6"),
    )
    assert (code, err) == (0, "")
    return folder


def test_built_masks_are_those_in_memory(built, base, tasks):
    expected = tall_masks(base, tasks, lambdas=(0.2, 0.4, 0.6)).select([0.2, 0.4, 0.6])
    vector = multi_task_vector(base, tasks)
    # Refuses another base or another vector.
    found = PackedMasks.load("masks.st", base=base, merged=vector)
    assert torch.equal(found.words, expected.words)
    assert (found.tasks, found.lambdas, found.layout) == (
        expected.tasks,
        expected.lambdas,
        expected.layout,
    )
    written = load_file("tau.safetensors")
    assert written.keys() == vector.keys()
    assert all(torch.equal(written[key], vector[key]) for key in vector)
    assert sorted(os.listdir()) == sorted([*FILES, "masks.st", "tau.safetensors"])


def test_densities_without_an_output(command, folder, base, tasks):
    code, out, _ = command("masks", "build", *FILES, "--json")
    facts = json.loads(out)
    masks = tall_masks(base, tasks)
    assert code == 0
    assert facts["lambdas"] == list(masks.lambdas)
    assert facts["densities"] == masks.densities.tolist()
    code, out, _ = command("masks", "build", *FILES, "--lambdas", "0.1,0.9")
    assert code == 0
    assert all(text in out for text in ("λ = 0.1", "λ = 0.9", *NAMES))
    assert sorted(os.listdir()) == sorted(FILES)


@pytest.mark.parametrize("comparison", ["strict", "paper"])
def test_a_consensus(command, folder, base, tasks, comparison):
    options = ("--consensus", 2, "--comparison", comparison, "--select", 0.5, "-o", "k.st")
    assert command("masks", "build", *FILES, *options)[0] == 0
    masks = tall_masks(base, tasks, lambdas=[0.5], comparison=comparison).select(0.5).consensus(2)
    found = read_mask_file("k.st").masks
    assert torch.equal(found.words, masks.words)
    assert (found.k, found.sources) == (2, NAMES)
    code, out, _ = command("masks", "inspect", "k.st")
    assert code == 0
    assert "at least 2 of cars, digits, signs" in " ".join(out.split())
    assert command("masks", "extract", "k.st", "--task", "consensus", "-o", "again.st")[0] == 0
    assert read_mask_file("again.st").masks.k == 2


def test_what_a_file_holds(command, built):
    code, out, _ = command("masks", "inspect", "masks.st", "--json")
    facts = json.loads(out)
    masks = read_mask_file("masks.st").masks
    assert code == 0
    assert facts["parameters"] == masks.num_parameters
    assert facts["overlap"] == masks.overlap().tolist()
    assert facts["histogram"] == masks.histogram().tolist()
    assert [(t["name"], t["lambda"]) for t in facts["tasks"]] == list(
        zip(NAMES, (0.2, 0.4, 0.6), strict=True)
    )
    assert [t["kept"] for t in facts["tasks"]] == [masks.unpack(name).sum() for name in NAMES]
    size = Path("masks.st").stat().st_size
    assert facts["bytes_per_parameter_and_task"] == size / (3 * masks.num_parameters)
    code, out, _ = command("masks", "inspect", "masks.st")
    assert code == 0
    assert all(text in out for text in (*NAMES, "0.6", "how many tasks keep"))


def test_the_model_of_a_task(command, built, base, tasks):
    arguments = ("masks", "apply", "masks.st", "--task", "digits", "--merged", "tau.safetensors")
    code, out, err = command(*arguments, "--base", FILES[0], "-o", "out.safetensors")
    assert (code, err) == (0, "")
    assert out == "wrote out.safetensors: digits\n"
    masks = read_mask_file("masks.st").masks
    expected = masks.apply("digits", base, multi_task_vector(base, tasks))
    found = load_file("out.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    # A model that the masks were not made for.
    code, out, err = command(*arguments, "--base", FILES[1], "-o", "wrong.safetensors")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "base must be the model that the masks were made for" in err
    assert not any(name.startswith("wrong") for name in os.listdir())
    code, _, err = command(*arguments, "--base", FILES[0], "-o", "out.safetensors")
    assert code == 2
    assert "exists" in err


def test_models_that_are_in_the_file(command, built, base, tasks):
    masks, vector = read_mask_file("masks.st").masks, multi_task_vector(base, tasks)
    masks.save("whole.st", base=base, merged=vector, embed=True)
    code, _, err = command("masks", "apply", "whole.st", "--task", "cars", "-o", "out.safetensors")
    assert (code, err) == (0, "")
    expected = masks.apply("cars", base, vector)
    assert all(torch.equal(v, expected[k]) for k, v in load_file("out.safetensors").items())
    code, _, err = command("masks", "apply", "masks.st", "--task", "cars", "-o", "b.safetensors")
    assert code == 2
    assert "--base must be given: masks.st does not hold it" in err


def test_one_mask_alone(command, built, base):
    masks = read_mask_file("masks.st").masks
    code, _, _ = command("masks", "extract", "masks.st", "--task", "digits", "-o", "digits.st")
    alone = read_mask_file("digits.st")
    assert code == 0
    assert torch.equal(alone.masks.words, masks.words[1:2])
    assert (alone.masks.tasks, alone.masks.lambdas) == (("digits",), (0.4,))
    assert alone.base_sha256 == read_mask_file("masks.st").base_sha256
    code, _, _ = command(
        *("masks", "extract", "masks.st", "--task", "digits", "--state-dict", "-o", "bool.st")
    )
    found = load_file("bool.st")
    assert code == 0
    assert {key: tuple(mask.shape) for key, mask in found.items()} == {
        key: tuple(value.shape) for key, value in base.items() if key != "step"
    }
    flat = torch.cat([found[key].flatten() for key in sorted(found)])
    assert torch.equal(flat, masks.unpack("digits"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("build", *FILES[:1], "-o", "x.st"), "at least one FINETUNED model"),
        (("build", *FILES, "-o", "x.st", "--select", "cars=0.3"), "none for digits, signs"),
        (("build", *FILES, "-o", "x.st", "--select", "car=0.3"), "once for each of cars, digits"),
        (("build", *FILES, "-o", "x.st", "--select", "big"), "--select must hold numbers"),
        (("build", *FILES, "-o", "x.st", "--lambdas", "0.2,x"), "--lambdas must hold numbers"),
        (
            ("build", *FILES, "-o", "x.st", "--lambdas", "-1"),
            "must be finite and positive",
        ),
        (("build", *FILES, "-o", "x.st", "--consensus", "4"), "--consensus must be from 1 to 3"),
        (("build", *FILES, "-o", "x.st", "--comparison", "loose"), "must be strict or paper"),
        (("build", *FILES, "-o", "signs.safetensors"), "must not be a file that is read"),
        (("build", *FILES, "-o", "old"), "--overwrite replaces it"),
        (("build", *FILES, "-o", "no/x.st"), "the folder of the output must exist"),
        (("build", *FILES, "./cars.safetensors", "-o", "x.st"), "must be different models"),
        (("build", FILES[0], "none.st", "-o", "x.st"), "none.st: no such checkpoint"),
        (("inspect", "none.st"), "none.st: No such file"),
        (("inspect", "base.safetensors"), "its format is None"),
        (("inspect", "old"), "old is not a complete safetensors file"),
        (("extract", "none.st", "--task", "a", "-o", "x.st"), "none.st: No such file"),
    ],
)
def test_errors_are_one_line(command, folder, arguments, says):
    Path("old").write_text("old")
    code, out, err = command("masks", *arguments)
    assert (code, out) == (2, "")
    assert one_line(err), err
    assert says in err
    assert sorted(os.listdir()) == sorted([*FILES, "old"])


def test_a_task_that_is_not_there(command, built):
    code, _, err = command("masks", "extract", "masks.st", "--task", "boats", "-o", "x.st")
    assert code == 2
    assert "--task must be one of cars, digits, signs, got 'boats'" in err


def test_help_without_a_command(command):
    code, out, _ = command("masks")
    assert code == 0
    assert all(name in out for name in ("build", "inspect", "apply", "extract"))
