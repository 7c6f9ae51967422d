"""The merging example from beginning to end, with a network too small to learn much."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("sklearn", reason="the example needs scikit-learn")
pytest.importorskip("matplotlib", reason="the example needs matplotlib")

import merge_tasks
from merge_tasks_training import methods, results
from merge_tasks_training.network import VisionTransformer
from merge_tasks_training.tasks import Models

from robustcore.demo.data import Digits, Split, load_digits
from robustcore.demo.task_vectors import TASKS

GRIDS = ("SCALES", "TIES_SCALES", "SPARSE_SCALES", "BETAS", "TIES_BETAS", "SLOPES")
TINY = ("--base-epochs", 1, "--epochs", 1, "--blocks", 2, "--width", 16)


def invoke(*arguments):
    return CliRunner().invoke(merge_tasks.app, [str(argument) for argument in arguments])


def few_images(seed):
    digits = load_digits(seed)
    parts = (digits.train, digits.validation, digits.test)
    return Digits(*(Split(part.images[:64], part.digits[:64]) for part in parts))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("merge-tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_tasks, "load_digits", few_images)
        for grid in GRIDS:
            patch.setattr(methods, grid, getattr(methods, grid)[:1])
        done = invoke("--output", output, "--seeds", 2, *TINY)
    assert done.exit_code == 0, done.output
    return output, done.output


def test_every_method_is_reported(finished):
    output, printed = finished
    result = json.loads((output / "results.json").read_text())
    assert list(result["methods"]) == list(methods.METHODS)
    assert result["methods"]["single"]["normalised_accuracy"]["mean"] == pytest.approx(1)
    model = result["methods"]["base"]["bytes"]
    assert 4 * result["parameters"] < model < 4 * result["parameters"] + 10_000
    for name, method in result["methods"].items():
        assert len(method["normalised_accuracy"]["per_seed"]) == 2
        assert set(method["tasks"]) == set(TASKS)
        assert all(0 <= task["mean"] <= 1 for task in method["tasks"].values())
        if name.startswith("tall_masks") or name == "emr":
            # Base, vector, and one bit per parameter and task.
            assert method["bytes"] > 2 * model + len(TASKS) * result["parameters"] / 8
        elif name == "single":
            assert method["bytes"] == len(TASKS) * model
        else:
            assert method["bytes"] == model
        if methods.METHODS[name].baseline:
            plain = result["methods"][methods.METHODS[name].baseline]["normalised_accuracy"]
            gain = method["normalised_accuracy"]["mean"] - plain["mean"]
            assert method["gain"]["mean"] == pytest.approx(gain)
    assert set(result["methods"]["tall_masks"]["chosen"][0]) == set(TASKS)
    assert (output / "results.md").read_text() == results.markdown(result)
    assert (output / "results.png").stat().st_size > 1000
    assert "TALL-masks" in printed


def test_finished_seeds_are_not_repeated(finished):
    output, _ = finished
    before = [path.stat().st_mtime_ns for path in sorted((output / "runs").iterdir())]
    done = invoke("--output", output, "--seeds", 2, *TINY)
    assert done.exit_code == 0, done.output
    after = [path.stat().st_mtime_ns for path in sorted((output / "runs").iterdir())]
    assert len(before) == 2
    assert after == before


def test_saved_models_give_the_same_numbers_again(finished, monkeypatch):
    output, _ = finished
    (output / "runs" / "seed-1.json").rename(output / "seed-1.json")
    monkeypatch.setattr(merge_tasks, "load_digits", few_images)
    monkeypatch.setattr(merge_tasks, "train", None)  # not trained again
    for grid in GRIDS:
        monkeypatch.setattr(methods, grid, getattr(methods, grid)[:1])
    done = invoke("--output", output, "--seeds", 2, *TINY)
    assert done.exit_code == 0, done.output
    before, after = (json.loads((output / p / "seed-1.json").read_text()) for p in ("", "runs"))
    assert after["methods"] == before["methods"]


def test_runs_of_other_settings_are_refused(finished):
    output, _ = finished
    done = invoke("--output", output, "--seeds", 2, *TINY, "--epochs", 2)
    assert done.exit_code == 2
    assert "holds runs with fine_tuning_epochs = 1, now it is 2" in done.output


def test_shared_features_give_the_accuracy_of_every_task():
    torch.manual_seed(0)
    network = VisionTransformer(8, 16, 2)
    heads = {name: torch.nn.Linear(16, task.classes) for name, task in TASKS.items()}
    models = Models(network, {}, {}, heads)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = few_images(0).test
    together = models.accuracies(state, images)
    for name in TASKS:
        assert together[name] == models.accuracies(state, images, [name])[name]


def test_patches_are_squares_of_the_image():
    network = VisionTransformer(8, 16, 2)
    image = torch.zeros(1, 8, 8)
    image[0, 4:, :4] = 1  # the third of four patches
    seen = []
    network.embedding.register_forward_hook(lambda _module, given, _out: seen.append(given[0][0]))
    network(image.flatten(1))
    assert seen[0].sum(-1).tolist() == [0, 0, 16, 0]
