"""The demo at its smallest: results, report, files, and what happens when something is wrong."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustcore.demo import run_demo

pytest.importorskip("sklearn", reason="the demo needs scikit-learn")
pytest.importorskip("matplotlib", reason="the demo needs matplotlib")

from rich.console import Console

from robustcore.demo import noisy_labels, run, sequence_model
from robustcore.demo.data import load_digits
from robustcore.demo.training import reproducible


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run for all tests that look at what it made."""
    root = tmp_path_factory.mktemp("demo")
    printed = io.StringIO()
    results = run_demo(
        root / "new" / "report",
        seeds=2,
        quick=True,
        json_path=root / "numbers" / "demo.json",
        console=Console(file=printed, width=100),
    )
    return SimpleNamespace(root=root, results=results, printed=printed.getvalue())


def numbers(value):
    """Every number in nested results."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_every_number_is_finite(quick):
    found = list(numbers(quick.results))
    assert len(found) > 500
    assert all(math.isfinite(number) for number in found)


def test_noisy_labels(quick):
    results = quick.results["noisy_labels"]
    assert results["images"] == {"train": 1078, "test": 360}
    assert 0.35 < results["wrong_labels"]["mean"] < 0.45
    assert set(results["methods"]) == {"cross_entropy", "pi_dual", "majority", "true_labels"}
    for method in results["methods"].values():
        assert len(method["test_accuracy"]["per_seed"]) == 2
        assert len(method["curve"]["mean"]) == results["epochs"]
        # Even a few epochs are far better than guessing one of ten.
        assert 0.3 < method["test_accuracy"]["mean"] <= method["best_epoch_accuracy"]["mean"] <= 1
        assert 0 <= method["memorised_wrong_labels"]["mean"] <= 1
    for score in results["detection"].values():
        assert 0 <= score["mean"] <= 1
    assert results["detection"]["pi_dual_log_probability"]["mean"] > 0.6
    for histogram in results["histograms"].values():
        assert sum(histogram["right"]) + sum(histogram["wrong"]) == 2 * 1078
        assert len(histogram["edges"]) == len(histogram["right"]) + 1
    assert sum(annotator["labels"] for annotator in results["annotators"]) == 2 * 1078


def test_task_vectors(quick):
    results = quick.results["task_vectors"]
    assert len(results["tasks"]) >= 6
    for task in results["tasks"]:
        assert task["lambda"] in (0.2, 0.3, 0.4, 0.5, 0.6)
        assert 0 < task["kept"] < 1
        assert all(0 <= score <= 1 for score in task["test_accuracy"].values())
        assert task["test_accuracy"]["single"] > 1 / task["classes"]
    assert sum(results["kept_by_tasks"]) == results["parameters"]
    assert len(results["kept_by_tasks"]) == len(results["tasks"]) + 1
    kept = sum(tasks * count for tasks, count in enumerate(results["kept_by_tasks"]))
    densities = sum(task["kept"] for task in results["tasks"])
    assert kept / results["parameters"] == pytest.approx(densities, abs=1e-5)

    stored = results["bytes"]
    bits = len(results["tasks"]) * results["parameters"]
    assert bits / 8 <= stored["masks"] < bits / 8 + 20_000
    assert stored["base"] >= 4 * results["parameters"]
    assert stored["masked"] == stored["base"] + stored["merged_vector"] + stored["masks"]
    assert stored["task_arithmetic"] < stored["masked"] < stored["separate_models"]


def test_sequence_model(quick):
    results = quick.results["sequence_model"]
    losses = results["losses"]
    assert len(losses["loop"]) == len(losses["operator"]) == 2 * math.ceil(1078 / 32)
    largest = max(abs(a - b) for a, b in zip(losses["loop"], losses["operator"], strict=True))
    assert results["largest_loss_difference"] == largest < 1e-4
    assert min(*results["training_seconds"].values(), *results["recurrence_seconds"].values()) > 0


def test_files(quick):
    report = quick.root / "new" / "report"
    assert quick.results["report"] == str(report / "index.html")
    assert sorted(path.name for path in report.iterdir()) == ["index.html", "results.json"]
    text = (report / "results.json").read_text(encoding="utf-8")
    assert json.loads(text) == {**quick.results, "report": "index.html"}
    assert (quick.root / "numbers" / "demo.json").read_text(encoding="utf-8") == text
    everything = {path.name for path in quick.root.rglob("*")}
    assert everything == {"new", "report", "index.html", "results.json", "numbers", "demo.json"}


def test_summary_in_the_terminal(quick):
    accuracy = quick.results["task_vectors"]["mean_test_accuracy"]["masked"]
    assert f"{100 * accuracy:.1f} %" in quick.printed
    assert "simulated" in quick.printed
    assert quick.results["report"] in quick.printed


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that each is closed where it must be."""

    void = frozenset({"meta", "br", "img", "hr", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_self_contained(quick):
    text = Path(quick.results["report"]).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert names.count("svg") == 7
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(names)

    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name == "src":
                assert value.startswith("data:"), f"<{tag} src={value}>"
            if name in ("href", "xlink:href"):
                assert value.startswith("#"), f"<{tag} {name}={value}>"
                assert value[1:] in identifiers, f"{value} is nowhere"
    assert "@import" not in text
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#"), target
        assert target[1:] in identifiers, target


def test_report_says_what_is_simulated_and_that_it_was_quick(quick):
    text = Path(quick.results["report"]).read_text(encoding="utf-8")
    assert "the annotators are simulated" in text
    assert "quick run" in text
    for name in ("PyTorch", "robustcore", "Python"):
        assert f"<td>{name}</td>" in text


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_nothing_is_left_behind_when_an_experiment_fails(tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(noisy_labels, "run", fail)
    with pytest.raises(type(error)):
        run_demo(
            tmp_path / "a" / "report",
            quick=True,
            json_path=tmp_path / "numbers.json",
            console=Console(file=io.StringIO()),
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    def fail(self, *arguments, **options):
        if self.name == "results.json":
            raise OSError("disk full")
        return original(self, *arguments, **options)

    original = Path.write_text
    old = tmp_path / "old"
    old.mkdir()
    (old / "index.html").write_text("before")
    monkeypatch.setattr(Path, "write_text", fail)
    files = {"index.html": "after", "results.json": "{}"}
    for folder in (old, tmp_path / "deep" / "new"):
        with pytest.raises(OSError, match="disk full"):
            run._write_folder(folder, files)
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "index.html"]
    assert (old / "index.html").read_text() == "before"


def test_an_existing_folder_keeps_its_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "index.html").write_text("before")
    run._write_folder(tmp_path, {"index.html": "after"})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "index.html").read_text() == "after"
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_places_are_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_experiments", lambda *arguments: pytest.fail("training began"))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match=r"run_demo: output_dir must be a folder, .*file"):
        run_demo(file)
    with pytest.raises(NotADirectoryError, match="on the way to"):
        run_demo(file / "report")
    with pytest.raises(IsADirectoryError, match="run_demo: json_path must be a file"):
        run_demo(tmp_path / "report", json_path=tmp_path)


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        (0, ValueError, "run_demo: seeds must be at least 1, got 0"),
        (2.0, TypeError, "run_demo: seeds must be an integer, got float"),
        (True, TypeError, "run_demo: seeds must be an integer, got bool"),
    ],
)
def test_bad_seeds(tmp_path, seeds, error, message):
    with pytest.raises(error) as caught:
        run_demo(tmp_path / "report", seeds=seeds)
    assert str(caught.value) == message


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_missing_extra(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        run_demo(tmp_path / "report")
    message = str(caught.value)
    assert "\n" not in message
    assert "pip install 'robustcore[demo]'" in message
    assert {"sklearn": "scikit-learn"}.get(module, module) in message
    assert caught.value.name == module
    assert list(tmp_path.iterdir()) == []


def test_importing_the_demo_needs_nothing_of_the_extra():
    code = (
        "import sys, robustcore.demo\n"
        "print([name for name in ('sklearn', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_annotators_are_as_described():
    digits = torch.arange(10).repeat(3000)
    notes = noisy_labels.simulate_annotations(digits, torch.Generator().manual_seed(0))
    assert torch.equal(notes.wrong, notes.given != digits)
    for annotator, rate in enumerate(noisy_labels.WRONG_RATES):
        own = notes.wrong[notes.annotator == annotator]
        assert own.double().mean().item() == pytest.approx(rate, abs=0.03)
    assert set(notes.agreement.tolist()) == {0.0, 0.5, 1.0}
    # Where both of the others agree, the three have one label; where neither does, the majority
    # is either the given label (all differ) or the one the others share.
    assert torch.equal(notes.majority[notes.agreement > 0], notes.given[notes.agreement > 0])
    assert (notes.majority[notes.agreement == 0] != notes.given[notes.agreement == 0]).any()
    similar = torch.tensor(noisy_labels.LOOK_ALIKE)
    assert (similar != torch.arange(10)).all()
    mistakes = (notes.given == similar[digits])[notes.wrong].double().mean().item()
    assert mistakes == pytest.approx(0.5 + 0.5 / 9, abs=0.03)


def test_same_seed_same_numbers():
    digits = load_digits()
    settings = noisy_labels.Settings(seeds=1, epochs=2, width=32, noise_width=32)

    def once():
        with reproducible():
            results = noisy_labels.run(digits, settings, lambda: None)
        return [
            (method["curve"], method["memorised_wrong_labels"])
            for method in results["methods"].values()
        ], results["detection"]

    assert once() == once()


def test_parts_of_the_data_are_disjoint_and_complete():
    digits = load_digits()
    parts = (digits.train, digits.validation, digits.test)
    assert sum(len(part) for part in parts) == 1797
    images = torch.cat([part.images for part in parts])
    assert images.min() == 0
    assert images.max() == 1
    # No image of one part is in another (the data set itself holds no image twice).
    assert len(images.flatten(1).unique(dim=0)) == 1797


def test_random_state_and_threads_come_back():
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()

    def fail():
        with reproducible():
            assert torch.get_num_threads() == 1
            torch.rand(3)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_python_loop_is_the_recurrence():
    a = torch.rand(2, 5, 3, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    states = sequence_model.python_loop(a, x)
    assert torch.equal(states[:, 0], x[:, 0])
    for t in range(1, 5):
        assert torch.equal(states[:, t], a[:, t] * states[:, t - 1] + x[:, t])
