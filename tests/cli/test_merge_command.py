"""``robustcore merge``: results, plans, and what is refused before work starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustcore.merging import METHODS, merge

FILES = ("base.safetensors", "cars.safetensors", "digits.safetensors", "signs.safetensors")


def same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype
        assert torch.equal(first[key], second[key]), key


def one_line(err):
    return err.startswith("robustcore: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {}),
        ("ties", {"density": 0.3}),
        ("ties", {"mode": "per_tensor", "weights": [1, 0.5, 2]}),
        ("dare", {"density": 0.5, "seed": 7}),
        ("lines", {"beta": 0.5}),
        ("ties", {"lines": {"alpha": 0.2}}),
        ("consensus", {"lambdas": 1e-1, "k": 1}),
    ],
)
def test_the_file_is_what_the_function_returns(command, folder, base, tasks, method, options):
    sets = [text for k, v in options.items() for text in ("--set", f"{k}={json.dumps(v)}")]
    code, out, err = command("merge", *FILES, "--method", method, *sets, "-o", "out.safetensors")
    assert (code, err) == (0, "")
    assert "wrote out.safetensors" in out
    same(load_file("out.safetensors"), merge(base, tasks, method=method, **options))
    assert sorted(os.listdir()) == sorted([*FILES, "out.safetensors"])


def test_the_report_as_json(command, folder):
    code, out, _ = command(
        "merge", FILES[0], "first=cars.safetensors", FILES[2], "-o", "out.safetensors", "--json"
    )
    report = json.loads(out)
    assert code == 0
    assert [model["name"] for model in report["models"]] == ["base", "first", "digits"]
    assert report["options"] == {"scale": None, "weights": 1.0, "lines": None}
    assert report["tensors"] == {"merged": 5, "carried": 1, "tied": 0}
    assert report["parameters"] == 3 * 30 * 70 + 50 * 9 + 11
    assert report["files"] == [str(folder / "out.safetensors")]
    assert (report["walks"], report["resumed"]) == (1, False)


def test_a_file_of_settings_and_the_command_line_over_it(command, folder, base, tasks):
    Path("merge.yaml").write_text(
        "base: base.safetensors\n"
        "finetuned: {first: cars.safetensors, no: digits.safetensors}\n"
        "output: out.safetensors\n"
        "method: ties\n"
        "options: {density: 0.5, scale: 1e-1}\n"
        "max-memory: 64MiB\n"
    )
    code, _, err = command("merge", "--config", "merge.yaml", "--set", "density=0.25")
    assert (code, err) == (0, "")
    given = [tasks["cars"], tasks["digits"]]
    same(load_file("out.safetensors"), merge(base, given, method="ties", density=0.25, scale=0.1))
    code, out, err = command(
        "merge", "--config", "merge.yaml", *FILES[:2], "-o", "b.safetensors", "--json"
    )
    assert code == 0
    assert [model["name"] for model in json.loads(out)["models"]] == ["base", "cars"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bsae: x\nmerhod: y\n", "unknown bsae, merhod; what can be given is base, finetuned"),
        ("- 1\n", "must hold a mapping of options, got list"),
        ("a: [\n", "must be YAML"),
        ("base: x\nbase: y\n", "'base' is there twice in line 2"),
        ("base: x\nfinetuned: y\n", "finetuned must be a list or a mapping of paths"),
        ("base: 1\n", "base must be text, got 1"),
        ("overwrite: maybe\n", "overwrite must be true or false, got 'maybe'"),
        ("options: 3\n", "options must be a mapping, got 3"),
        ("method: ties\n", "a merge takes BASE and at least one FINETUNED model"),
    ],
)
def test_a_file_of_settings_that_is_wrong(command, folder, text, says):
    Path("merge.yaml").write_text(text)
    code, out, err = command("merge", "--config", "merge.yaml", "-o", "out.safetensors")
    assert (code, out) == (2, "")
    assert one_line(err)
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (FILES[:1], "at least one FINETUNED model"),
        ((*FILES, "--method", "tis"), "method must be one of task_arithmetic, linear"),
        ((*FILES, "--set", "densit=1"), "task_arithmetic has the options scale, weights, lines"),
        ((*FILES, "--set", "scale"), "--set must be key=value, got 'scale'"),
        ((*FILES, "--set", "scale=1", "--set", "scale=2"), "--set scale is given twice"),
        ((*FILES, "--set", "scale=[1"), "--set scale must be a YAML value"),
        ((*FILES, "--set", "scale=big"), "scale must be a number, got 'big'"),
        ((*FILES, "--method", "ties", "--set", "density=2"), "density must be from 0 to 1, got 2"),
        ((*FILES, "--mismatch", "ignore"), "--mismatch must be one of error, skip, crop, pad"),
        ((*FILES, "--dtype", "int8"), "--dtype must be one of float32,"),
        ((*FILES, "--max-memory", "much"), "--max-memory must be a size like 512MiB"),
        ((*FILES, "--max-memory", "1KiB"), "max_memory must be at least"),
        ((*FILES, "--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
        ((*FILES, "nothing.safetensors"), "nothing.safetensors: no such checkpoint"),
        ((*FILES, "./cars.safetensors"), "'cars' and 'cars-2' must be different models"),
        (("base.safetensors", *FILES[:2]), "base and 'base' must be different models"),
        (("a=base.safetensors", "b=cars.safetensors", "b=signs.safetensors"), "'b' is given twice"),
        (("base.safetensors", "=cars.safetensors"), "a model must be PATH or NAME=PATH"),
        ((*FILES, "--method", "lines", "--set", "blocks=(x)"), "blocks must be at least 2"),
    ],
)
def test_bad_arguments_are_one_line(command, folder, arguments, says):
    code, out, err = command("merge", *arguments, "-o", "out.safetensors")
    assert (code, out) == (2, "")
    assert one_line(err), err
    assert says in err
    assert sorted(os.listdir()) == sorted(FILES)


def test_everything_that_is_wrong_is_told_at_once(command, folder):
    Path("broken.safetensors").write_bytes(b"\xff" * 100)
    code, out, err = command(
        *("merge", "base.safetensors", "cars.safetensors", "broken.safetensors", "none.pt"),
        *("--method", "tis", "--dtype", "int8", "-o", "missing/out.safetensors"),
    )
    assert (code, out) == (2, "")
    for says in ("got 'tis'", "got 'int8'", "broken.safetensors: ", "none.pt: no", "missing: "):
        assert says in err
    assert err.splitlines()[-1] == "robustcore: 5 problems, listed above; nothing was written"


def test_models_that_do_not_match_are_one_report(command, folder, tasks):
    odd = tasks["cars"] | {"head.bias": torch.zeros(12), "more": torch.zeros(1)}
    del odd["layers.1.weight"]
    save_file(odd, "odd.safetensors")
    arguments = ("merge", "base.safetensors", "odd.safetensors", "-o", "out.safetensors")
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "odd['head.bias'] must have shape (11,), got (12,)" in err
    assert "odd['layers.1.weight'] is missing" in err
    assert "odd['more'] is not in base" in err
    assert err.splitlines()[-1].endswith("got 3 differences (listed above)")
    code, out, err = command(*arguments, "--mismatch", "skip")
    assert code == 0
    assert "odd['head.bias'] must have shape (11,), got (12,): kept as in base" in err
    assert torch.equal(load_file("out.safetensors")["head.bias"], load_file(FILES[0])["head.bias"])


def test_weights_that_are_not_finite(command, folder, tasks):
    tasks["cars"]["layers.1.weight"][3, 4] = float("nan")
    save_file(tasks["cars"], "nan.safetensors")
    arguments = ("merge", "base.safetensors", "nan.safetensors", "-o", "out.safetensors")
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "nan['layers.1.weight'] has 1 (of 2100 looked at)" in err
    assert sorted(os.listdir()) == sorted([*FILES, "nan.safetensors"])
    code, out, _ = command(*arguments, "--allow-nonfinite")
    assert code == 0
    assert "1 in differences, 1 in merged" in out
    assert int(load_file("out.safetensors")["layers.1.weight"].isnan().sum()) == 1


def test_where_the_output_cannot_go(command, folder, monkeypatch):
    def refused(output, *more):
        code, out, err = command("merge", *FILES, "-o", output, *more)
        assert (code, out) == (2, "")
        assert one_line(err)
        return err

    Path("old").write_text("old")
    assert "the output exists; --overwrite replaces it" in refused("old")
    assert "which is the input" in refused("signs.safetensors")
    assert "which is the input" in refused("signs.safetensors", "--overwrite")
    os.link("cars.safetensors", "link.safetensors")
    assert "which is the input" in refused("link.safetensors", "--overwrite")
    assert "must be a file" in refused(".")
    monkeypatch.setattr("robustcore.merging.output.plan.os.access", lambda *_: False)
    assert "must be writable" in refused("out.safetensors")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("robustcore.cli.merge_setup.shutil.disk_usage", lambda _: usage)
    assert "where 1000 are free" in refused("out.safetensors")
    assert sorted(os.listdir()) == sorted([*FILES, "link.safetensors", "old"])


def test_an_output_is_replaced_where_that_is_said(command, folder):
    Path("out.safetensors").write_text("old")
    assert command("merge", *FILES, "-o", "out.safetensors", "--overwrite")[0] == 0
    assert load_file("out.safetensors").keys() == load_file(FILES[0]).keys()


def test_shards_and_another_dtype(command, folder, base, tasks):
    code, out, err = command(
        *("merge", *FILES, "-o", "out", "--max-shard-size", "10kB", "--dtype", "float16", "--json")
    )
    assert (code, err) == (0, "")
    files = json.loads(out)["files"]
    assert len(files) > 1
    found = {key: value for file in files for key, value in load_file(file).items()}
    same(found, merge(base, tasks, dtype=torch.float16))
    assert command("merge", "out", "cars.safetensors", "-o", "again.safetensors")[0] == 0


def test_a_dry_run_shows_the_plan_and_writes_nothing(command, folder, tasks):
    grown = tasks["cars"] | {"embed.weight": torch.zeros(60, 9, dtype=torch.bfloat16)}
    save_file(grown, "grown.safetensors")
    before = sorted(os.listdir())
    code, out, err = command(
        *("merge", *FILES[:1], "grown.safetensors", *FILES[2:], "--mismatch", "pad"),
        *("--method", "ties", "--set", "lines={beta: 0.5}", "--dry-run"),
    )
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for says in ("density=0.2", "5 merged", "1 carried", "padded to 60 rows", "alpha + 0.25"):
        assert says in text
    assert "an estimate from" in text
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("memory", ["1GiB", "40MB"])
@pytest.mark.parametrize(
    "method",
    [
        ("task_arithmetic",),
        ("ties",),
        ("lines",),
        ("magnitude", "--set", "rescale=l1"),
        ("della", "--set", "lines=true"),
    ],
)
def test_the_plan_says_how_often_weights_are_read(command, folder, monkeypatch, method, memory):
    if memory != "1GiB":  # chunks smaller than tensors
        from robustcore.merging.engine import execute

        monkeypatch.setattr(execute, "_capacities", lambda *_: (4096, 4096))
        base = torch.randn(3, 70, 100, generator=torch.Generator().manual_seed(1))
        for scale, name in enumerate(FILES[:3]):
            values = {f"layers.{i}.w": row * (1 + scale / 9) for i, row in enumerate(base)}
            save_file({key: value.clone() for key, value in values.items()}, name)
    arguments = ("merge", *FILES[:3], "--method", *method, "-o", "out.safetensors", "--json")
    code, out, _ = command(*arguments, "--dry-run", "--max-memory", memory)
    plan = json.loads(out)
    assert code == 0
    assert not Path("out.safetensors").exists()
    code, out, _ = command(*arguments, "--max-memory", memory)
    report = json.loads(out)
    assert code == 0
    assert report["walks"] == pytest.approx(plan["walks"])
    assert plan["bytes_written"] == report["bytes_written"]
    assert plan["sampled_seconds"] > 0
    assert plan["estimated_seconds"] > 0
    assert 0 < plan["buffer_bytes"] < 1 << 30


def test_every_method_is_listed(command):
    code, out, err = command("merge", "--list-methods", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == list(METHODS)
    assert rows["ties"]["options"]["density"] == 0.2
    assert all(row["what"] for row in rows.values())
    code, out, _ = command("merge", "--list-methods")
    assert code == 0
    assert all(name in out for name in METHODS)


def test_an_interruption_says_how_to_go_on(command, folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    # The module, not the function of the same name.
    monkeypatch.setattr(sys.modules["robustcore.merging.merge"], "execute", interrupted)
    code, out, err = command("merge", *FILES, "-o", "out.safetensors")
    assert (code, out) == (130, "")
    assert err.splitlines() == [
        "what is done stays; the same command goes on from there",
        "robustcore: interrupted",
    ]
    assert Path("out.safetensors.journal").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    code, _, err = command("merge", *FILES, "--set", "scale=9", "-o", "out.safetensors")
    assert code == 2
    assert "recipe.scale was 0.3, is 9.0" in err
    code, out, err = command("merge", *FILES, "-o", "out.safetensors", "--json")
    assert (code, err) == (0, "going on with an interrupted merge\n")
    assert json.loads(out)["resumed"] is True
    assert not Path("out.safetensors.journal").exists()


SLOW = """
import sys, time
from robustcore.cli.main import main
from robustcore.merging.engine import execute
from robustcore.merging.output import CheckpointWriter
execute._PREFERRED_BYTES = 1 << 16
plain = CheckpointWriter.mark_done
def slow(self, part):
    time.sleep(0.02)
    plain(self, part)
CheckpointWriter.mark_done = slow
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_killed_merge_goes_on_and_ends_with_the_same_bytes(command, folder):
    generator = torch.Generator().manual_seed(0)
    base = {f"w{i}": torch.randn(100, 900, generator=generator) for i in range(4)}
    save_file(base, "large.safetensors")
    for seed in (1, 2):
        generator.manual_seed(seed)
        change = {k: v + torch.randn(v.shape, generator=generator) for k, v in base.items()}
        save_file(change, f"large{seed}.safetensors")
    models = ("large.safetensors", "large1.safetensors", "large2.safetensors")
    arguments = ("merge", *models, "--method", "ties", "--max-memory", "64MiB", "-o")
    assert command(*arguments, "whole.safetensors")[0] == 0
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments, "out.safetensors"])
    journal = Path("out.safetensors.journal")
    limit = time.monotonic() + 60
    while not journal.exists() or journal.read_text().count('"done"') < 10:
        assert process.poll() is None, "the merge ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not Path("out.safetensors").exists()
    code, out, err = command(*arguments, "out.safetensors", "--json")
    assert (code, err) == (0, "going on with an interrupted merge\n")
    report = json.loads(out)
    assert report["resumed"] is True
    assert report["walks"] < 1  # what was found out and merged before is not done again
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
