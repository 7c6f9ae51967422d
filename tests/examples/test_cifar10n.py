"""The CIFAR-10N example from beginning to end, on a few synthetic images in the same files."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("PIL", reason="the example needs Pillow")
pytest.importorskip("sklearn", reason="the example needs scikit-learn")
pytest.importorskip("matplotlib", reason="the example needs matplotlib")

import cifar10n
import cifar10n_convert
from cifar10n_training import data, results
from cifar10n_training.methods import METHODS, Setup
from cifar10n_training.networks import augment, hidden_layer
from PIL import Image

EXAMPLES = Path(cifar10n.__file__).parent
CLASSES = ("red", "green", "blue")
SIZE = 12


def jpegs(labels, generator):
    """Images of one colour with noise, so that the label can be learned."""
    parts = []
    for label in labels:
        pixels = generator.integers(0, 90, (SIZE, SIZE, 3))
        pixels[:, :, label] += 130
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=95)
        parts.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, parts)])
    return {"jpeg": np.frombuffer(b"".join(parts), np.uint8), "offsets": offsets}


def arrays(count, generator, train):
    clean = generator.integers(0, 3, count).astype(np.uint8)
    result = {**jpegs(clean, generator), "clean": clean, "classes": np.array(CLASSES)}
    if train:
        mistaken = generator.random((count, 3)) < 0.12
        annotations = np.where(mistaken, (clean[:, None] + 1) % 3, clean[:, None])
        differ = annotations != clean[:, None]
        majority = np.where(differ.sum(1) >= 2, (clean + 1) % 3, clean)
        worst = np.where(differ.any(1), (clean + 1) % 3, clean)
        result |= {"annotations": annotations.astype(np.uint8)}
        result |= {"aggregate": majority.astype(np.uint8), "worst": worst.astype(np.uint8)}
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cifar10n")
    generator = np.random.default_rng(0)
    np.savez(path / data.TRAIN_FILE, **arrays(80, generator, train=True))
    np.savez(path / data.TEST_FILE, **arrays(40, generator, train=False))
    return path


@pytest.fixture(autouse=True)
def threads():
    """The command sets the number of threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def invoke(*arguments, app=cifar10n.app):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def every_method(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("every-method")
    done = invoke("--data", folder, "--output", output, "--seeds", 2, "--epochs", 12)
    assert done.exit_code == 0, done.output
    return output, done.output


def test_every_method_is_reported(every_method):
    output, printed = every_method
    result = json.loads((output / "worst" / "results.json").read_text())
    assert list(result["methods"]) == list(METHODS)
    assert 0.2 < result["wrong_labels"] < 0.45
    for name, method in result["methods"].items():
        assert name in printed
        for measure in ("test_accuracy", "memorised_wrong_labels", "detection_auc"):
            assert len(method[measure]["per_seed"]) == 2
            assert all(0 <= value <= 1 for value in method[measure]["per_seed"])
            assert math.isfinite(method[measure]["std"])
        assert method["step_time_vs_ce"] > 0
        assert isinstance(method["beats_ce_beyond_spread"], bool)
        assert (output / "worst" / f"detection-{name}.png").stat().st_size > 1000
    assert result["methods"]["ce"]["step_time_vs_ce"] == 1
    assert result["methods"]["pi-dual"]["privileged_information"] == "agreement, random"
    assert (output / "worst" / "results.png").stat().st_size > 1000
    # Plain colours: the features tell them apart.
    assert max(m["test_accuracy"]["mean"] for m in result["methods"].values()) > 0.6


ROOT = EXAMPLES.parent


def test_the_documented_table_is_the_committed_result():
    result = json.loads((EXAMPLES / "results" / "cifar10n-worst-cpu.json").read_text())
    assert results.markdown(result) in (ROOT / "docs" / "examples.md").read_text()


def test_finished_runs_are_not_repeated(every_method, folder):
    output, _ = every_method
    runs = sorted((output / "worst" / "runs").iterdir())
    assert len(runs) == 2 * len(METHODS)
    before = [run.stat().st_mtime_ns for run in runs]
    done = invoke("--data", folder, "--output", output, "--seeds", 2, "--epochs", 12)
    assert done.exit_code == 0, done.output
    assert [run.stat().st_mtime_ns for run in runs] == before


def test_runs_of_other_settings_or_data_are_refused(every_method, folder, tmp_path):
    output, _ = every_method
    done = invoke("--data", folder, "--output", output, "--epochs", 7)
    assert done.exit_code == 2
    assert "holds runs with epochs = 12, now it is 7; choose another --output" in done.output
    with np.load(folder / data.TRAIN_FILE) as file:
        other = broken(folder, tmp_path, worst=1 - file["worst"] // 2)
    shutil.copy(folder / data.TEST_FILE, other)
    done = invoke("--data", other, "--output", output, "--seeds", 2, "--epochs", 12)
    assert done.exit_code == 2
    assert "holds runs with checksum of the data" in done.output


def numbers(run: Path):
    """What a run found, without what depends on the clock."""
    found = json.loads(run.read_text())
    del found["milliseconds_per_step"]
    return found


# Runs the example and kills it, without a chance to clean up, after or during the writing of a
# checkpoint.
KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
at, epoch = sys.argv.pop(1), int(sys.argv.pop(1))
import cifar10n
from cifar10n_training import files, train

save, replace = train.save_tensors, os.replace

def die(*unused):
    os.kill(os.getpid(), signal.SIGKILL)

def save_and_die(path, state):
    if state["epoch"] == epoch and at == "during":
        files.os.replace = die
    save(path, state)
    if state["epoch"] == epoch:
        die()

train.save_tensors = save_and_die
cifar10n.app()
"""


def kill(at, epoch, options):
    command = [sys.executable, "-c", KILL, EXAMPLES, at, epoch, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("method", "at", "kept"),
    [("tram+sop", "after", 5), ("elr", "during", 4), ("het", "after", 5)],
)
def test_a_killed_run_continues_to_the_same_numbers(folder, tmp_path, method, at, kept):
    options = ["--data", folder, "--seeds", 1, "--epochs", 12, "--checkpoint-seconds", 0]
    options += ["--method", method]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    checkpoints = killed / "worst" / "checkpoints"

    kill(at, 5, [*options, "--output", killed])
    [left] = checkpoints.glob("*.pt")
    assert torch.load(left, weights_only=True)["epoch"] == kept
    done = invoke(*options, "--output", killed)
    assert done.exit_code == 0, done.output
    assert list(checkpoints.glob("*.pt")) == []

    done = invoke(*options, "--output", whole)
    assert done.exit_code == 0, done.output
    [run] = (whole / "worst" / "runs").iterdir()
    assert numbers(killed / "worst" / "runs" / run.name) == numbers(run)


def test_tuning_uses_no_clean_label(folder, tmp_path):
    """Other clean labels, the same choice and the same numbers."""
    other = tmp_path / "other"
    other.mkdir()
    with np.load(folder / data.TRAIN_FILE) as file:
        content = dict(file)
    content["clean"] = np.zeros_like(content["clean"])
    np.savez(other / data.TRAIN_FILE, **content)
    shutil.copy(folder / data.TEST_FILE, other)
    tuned = []
    for place in (folder, other):
        output = tmp_path / f"out-{place.name}"
        done = invoke(
            "--data", place, "--output", output, "--tune", "--method", "gce", "--epochs", 3
        )
        assert done.exit_code == 0, done.output
        tuned.append(json.loads((output / "worst-tuning" / "tuning.json").read_text())["methods"])
    assert tuned[0] == tuned[1]
    tried = tuned[0]["gce"]["tried"]
    assert [one["values"] for one in tried] == METHODS["gce"].candidates()
    best = max(tried, key=lambda one: one["held_out_noisy_accuracy"])
    assert tuned[0]["gce"]["chosen"] == best["values"]


@pytest.mark.parametrize("labels", ["random1", "aggregate"])
def test_other_labels_and_the_large_network(folder, tmp_path, labels):
    done = invoke(
        "--data", folder, "--output", tmp_path, "--labels", labels, "--network", "resnet18",
        "--method", "tram++", "--seeds", 1, "--epochs", 1, "--train-images", 24,
        "--test-images", 10,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / labels / "results.json").read_text())
    assert result["settings"]["network"] == "resnet18"
    assert "step_time_vs_ce" not in result["methods"]["tram++"]
    assert result["methods"]["tram++"]["test_accuracy"]["std"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "best"], "--labels must be one of random1, random2, random3, worst"),
        (["--method", "magic"], "--method must be one of ce, gce"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:99"], "--device cuda:99: torch finds"),
        (["--network", "vgg"], "--network must be one of features, resnet18, got 'vgg'"),
    ],
)
def test_bad_arguments(folder, tmp_path, arguments, message):
    done = invoke("--data", folder, "--output", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_bad_numbers_are_usage_errors(folder, tmp_path):
    for option in ("--seeds", "--epochs", "--train-images"):
        done = invoke("--data", folder, "--output", tmp_path, option, 0)
        assert done.exit_code == 2
        assert option in done.output


def broken(folder, path, **changes):
    with np.load(folder / data.TRAIN_FILE) as file:
        content = {**file, **changes}
    np.savez(path / data.TRAIN_FILE, **{k: v for k, v in content.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worst": None}, "array 'worst' is missing"),
        ({"aggregate": np.zeros(3, np.uint8)}, "aggregate must have shape (80,), got (3,)"),
        ({"annotations": np.zeros((80, 2), np.uint8)}, "annotations must have shape (80, 3)"),
        ({"clean": np.full(80, 9, np.uint8)}, "clean must be below 3, got 9"),
        ({"offsets": np.arange(80, -1, -1)}, "offsets must rise from 0"),
        ({"jpeg": np.zeros(10**6, np.uint8)}, "image 0 is not a readable JPEG"),
    ],
)
def test_broken_data(folder, tmp_path, changes, message):
    with pytest.raises(data.DataError) as caught:
        data.read_train(broken(folder, tmp_path, **changes), "worst")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_and_unreadable_data(folder, tmp_path):
    done = invoke("--data", tmp_path, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "cifar10n_train.npz is missing" in done.output.replace("\n", "")
    assert not (tmp_path / "out").exists()
    (tmp_path / data.TRAIN_FILE).write_bytes(b"no archive")
    with pytest.raises(data.DataError, match=r"cannot be read as \.npz"):
        data.read_train(tmp_path, "worst")


def test_agreement_counts_the_annotators(folder):
    for labels in data.LABELS:
        train = data.read_train(folder, labels)
        counts = data.agreement(train)
        assert torch.equal(counts.sum(1), torch.ones(80))
        same = (train.annotations == train.given[:, None]).sum(1)
        assert torch.equal(counts.argmax(1), same)
    # A fixed subset: the same rows for every kind of label.
    subset = data.read_train(folder, "worst", 20)
    assert torch.equal(subset.clean, data.read_train(folder, "random1", 20).clean)


def test_augmented_images_are_crops_and_flips():
    images = torch.arange(1.0, 4 * 2 * 36 + 1).reshape(4, 2, 6, 6)
    seen = set()
    for seed in range(30):
        out = augment(images, torch.Generator().manual_seed(seed), margin=2)
        assert out.shape == images.shape
        padded = torch.nn.functional.pad(images, (2,) * 4)
        for before, after in zip(padded, out, strict=True):
            matches = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if torch.equal(_crop(before, top, left, flip), after)
            ]
            assert len(matches) == 1
            seen.add(matches[0])
    assert len(seen) > 40


def _crop(padded, top, left, flip):
    crop = padded[:, top : top + 6, left : left + 6]
    return crop.flip(2) if flip else crop


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name):
    """A few steps on separable data: the loss falls and predictions become right."""
    torch.manual_seed(0)
    target = torch.arange(60) % 3
    x = torch.nn.functional.one_hot(target, 3).float() * 3 + 0.1 * torch.randn(60, 3)
    agreement = torch.nn.functional.one_hot(torch.full((60,), 3), 4).float()
    setup = Setup(lambda: hidden_layer(3, 3, 16), 60, 3, agreement, torch.randn(60, 8))
    method = METHODS[name].build(setup, **METHODS[name].values)
    optimizers = [torch.optim.Adam(method.network_parameters(), 0.01), *method.own_optimizers()]
    trained = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, method.parameters()))  # each exactly once
    index = torch.arange(60)
    for _ in range(60):
        for optimizer in optimizers:
            optimizer.zero_grad()
        method.loss(x, target, index).backward()
        for optimizer in optimizers:
            optimizer.step()
    method.eval()
    assert (method(x).argmax(-1) == target).float().mean() > 0.9
    assert torch.equal(method(x), method(x))


@pytest.fixture
def published(tmp_path):
    """The published files in miniature: pickled batches and a file of labels."""
    generator = np.random.default_rng(1)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    (batches / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [name.encode() for name in CLASSES]})
    )
    clean = []
    for name in (*cifar10n_convert.TRAIN_BATCHES, "test_batch"):
        labels = generator.integers(0, 3, 4).tolist()
        pixels = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}))
        clean += labels if name != "test_batch" else []
    clean = np.array(clean)
    human = {
        "clean_label": clean,
        "worse_label": (clean + 1) % 3,
        "aggre_label": clean,
        **{f"random_label{number}": (clean + number) % 3 for number in (1, 2, 3)},
    }
    torch.save(human, tmp_path / "human.pt")
    return batches, tmp_path / "human.pt", human


def test_convert(published, tmp_path):
    batches, labels, human = published
    done = invoke(batches, labels, tmp_path / "out", app=cifar10n_convert.app)
    assert done.exit_code == 0, done.output
    train = data.read_train(tmp_path / "out", "random2")
    assert train.classes == CLASSES
    assert train.images.shape == (20, 3, 32, 32)
    assert train.clean.tolist() == human["clean_label"].tolist()
    assert train.given.tolist() == human["random_label2"].tolist()
    worst = data.read_train(tmp_path / "out", "worst")
    assert worst.given.tolist() == human["worse_label"].tolist()
    assert len(data.read_test(tmp_path / "out")) == 4
    # Channels and rows are where they belong: JPEG keeps the mean of each.
    pixels = pickle.loads((batches / "data_batch_1").read_bytes())[b"data"]
    expected = pixels.reshape(4, 3, 32, 32).mean((2, 3))
    assert np.allclose(train.images[:4].float().mean((2, 3)), expected, atol=3)


def test_convert_says_what_is_wrong(published, tmp_path):
    batches, labels, human = published
    out = tmp_path / "out"

    def message(labels):
        done = invoke(batches, labels, out, app=cifar10n_convert.app)
        assert done.exit_code == 2
        assert not out.exists()
        return done.output

    assert "No such file" in message(tmp_path / "missing.pt")
    other = tmp_path / "other.pt"
    torch.save({**human, "clean_label": (human["clean_label"] + 1) % 3}, other)
    assert "clean_label differs" in message(other)
    torch.save({"clean_label": human["clean_label"]}, other)
    assert "'random_label1' is missing" in message(other)
    torch.save({**human, "aggre_label": np.zeros(3)}, other)
    assert "aggre_label must have shape (20,)" in message(other)
    # A file that would run something is not read.
    marker = tmp_path / "ran"
    (batches / "test_batch").write_bytes(pickle.dumps(_Touch(marker)))
    assert "no batch of CIFAR-10" in message(labels)
    torch.save(_Touch(marker), other)
    assert not marker.exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))
