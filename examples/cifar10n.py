"""Training on the human label noise of CIFAR-10N: robust losses against cross-entropy.

    python examples/cifar10n.py --data FOLDER --labels worst --method ce --method pi-dual
    python examples/cifar10n.py --data FOLDER                       # every method
    python examples/cifar10n.py --data FOLDER --device cuda         # ResNet-18 on all images
    python examples/cifar10n.py --data FOLDER --method elr --tune   # its grid, on held-out labels

FOLDER holds ``cifar10n_train.npz`` and ``cifar10_test.npz``; ``cifar10n_convert.py`` beside this
file makes them and says where the published data is. Needs ``pip install 'robustcore[examples]'``.

Reported per method, mean and standard deviation over the seeds: test accuracy after the last epoch
(no epoch is picked); the share of wrong labels that the trained classifier repeats; how well
−log p(given label) ranks wrong labels above right ones (AUC of
``robustcore.losses.noise_detection``); the median time of a step relative to cross-entropy (on the
CPU processor time).

The privileged information is the number of annotators who gave the label, and a fixed random vector
per example. With ``worst`` labels that number alone is close to an oracle of which labels are
wrong: compare ``pi-dual-random``, which does without.

A run that is killed continues where it was, with the same numbers: call the same command again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from cifar10n_training import results
from cifar10n_training.data import LABELS, DataError
from cifar10n_training.files import read_json, write_bytes, write_json
from cifar10n_training.methods import METHODS
from cifar10n_training.settings import BY_NETWORK, Settings
from cifar10n_training.task import Task, prepare
from cifar10n_training.train import CHECKPOINT_SECONDS, run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HELD_OUT = 0.2
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(2)


@dataclass(frozen=True)
class Job:
    """One run of the list: which method, with which values, from which seed."""

    method: str
    values: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        values = "".join(f",{key}={value}" for key, value in sorted(self.values.items()))
        return f"{self.method}{values},seed={self.seed}"


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder with the two .npz files.")],
    labels: Annotated[str, typer.Option(help=f"Which labels: {', '.join(LABELS)}.")] = "worst",
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeatable: {', '.join(METHODS)}; or all.", show_default="all"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seeds: Annotated[int, typer.Option(min=1, help="How many; seeds count from 0.")] = 3,
    output: Annotated[Path, typer.Option(help="Where results and checkpoints go.")] = Path(
        "cifar10n-results"
    ),
    network: Annotated[
        str | None,
        typer.Option(
            help="features (a hidden layer on fixed features) or resnet18.",
            show_default="features on the CPU, else resnet18",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    train_images: Annotated[int | None, typer.Option(min=10, help="A fixed random subset.")] = None,
    test_images: Annotated[int | None, typer.Option(min=10, help="A fixed random subset.")] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; the networks are small for more than one.")
    ] = 1,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="At the end of the first epoch after so long.")
    ] = CHECKPOINT_SECONDS,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Try each method's grid with one seed on a held-out fifth of the training "
            "images, judged by their given (noisy) labels; no clean label is used.",
        ),
    ] = False,
) -> None:
    """Train on CIFAR-10N with several losses and compare them."""
    names = _method_names(method)
    if labels not in LABELS:
        fail(f"--labels must be one of {', '.join(LABELS)}, got {labels!r}")
    where = _device(device)
    network = network or ("features" if where.type == "cpu" else "resnet18")
    if network not in BY_NETWORK:
        fail(f"--network must be one of {', '.join(BY_NETWORK)}, got {network!r}")
    changes = {"epochs": epochs, "train_images": train_images, "test_images": test_images}
    settings = BY_NETWORK[network].replace(
        **{key: value for key, value in changes.items() if value is not None},
        held_out=HELD_OUT if tune else 0.0,
    )
    if where.type == "cpu":
        torch.set_num_threads(threads)
    folder = output / f"{labels}-tuning" if tune else output / labels
    console = Console()
    try:
        chosen = {**dataclasses.asdict(settings), "device": where.type}
        _check_same(folder / "settings.json", chosen)  # before the data is read, to save time
        with console.status("preparing") as status:
            features = output / f"features-{settings.train_images}-{settings.test_images}.pt"
            task = prepare(data, labels, settings, where, features, status.update)
        chosen["checksum of the data"] = task.checksum
        _check_same(folder / "settings.json", chosen)
        write_json(folder / "settings.json", chosen)
        if tune:
            task = task.hold_out(settings.held_out)
            jobs = [Job(name, values, 0) for name in names for values in METHODS[name].candidates()]
        else:
            # Seed by seed, so that an early look has every method, and the times that are compared
            # were taken close together.
            jobs = [
                Job(name, METHODS[name].values, seed) for seed in range(seeds) for name in names
            ]
        numbers = _run_all(jobs, task, settings, folder, console, checkpoint_seconds)
    except DataError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or output}: {error.strerror or error}")

    if tune:
        _finish_tuning(names, jobs, numbers, folder, labels, settings, console)
        return
    by_method = {
        name: [number for job, number in zip(jobs, numbers) if job.method == name] for name in names
    }
    result = {
        "labels": labels,
        "wrong_labels": task.wrong.double().mean().item(),
        "seeds": seeds,
        "settings": dataclasses.asdict(settings),
        "device": where.type,
        "machine": results.machine(),
        "methods": results.gather(by_method),
    }
    write_json(folder / "results.json", result)
    results.plot(result, folder / "results.png")
    write_bytes(folder / "results.md", results.markdown(result).encode())
    console.print(results.table(result))
    console.print(
        f"written: {folder / 'results.json'}, results.md, results.png, detection-*.png",
        soft_wrap=True,
    )


def _method_names(chosen: list[str] | None) -> list[str]:
    if not chosen or "all" in chosen:
        return list(METHODS)
    for name in chosen:
        if name not in METHODS:
            fail(f"--method must be one of {', '.join(METHODS)} or all, got {name!r}")
    return list(dict.fromkeys(chosen))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        fail(f"--device must be cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        fail(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices")
    return device


def _check_same(path: Path, expected: dict[str, Any]) -> None:
    """Numbers of different settings or data must not meet in one result."""
    found = read_json(path) or expected
    for name, value in expected.items():
        if found.get(name) != value:
            fail(
                f"{path.parent} holds runs with {name} = {found.get(name)}, now it is {value}; "
                "choose another --output or remove that folder"
            )


def _run_all(
    jobs: list[Job],
    task: Task,
    settings: Settings,
    folder: Path,
    console: Console,
    checkpoint_seconds: float,
) -> list[dict[str, Any]]:
    numbers = []
    with _progress(console, len(jobs), settings.epochs) as (begin, advance, end):
        for job in jobs:
            path = folder / "runs" / f"{job.name}.json"
            done = read_json(path)
            if done is None:
                begin(job.name)
                checkpoint = folder / "checkpoints" / f"{job.name}.pt"
                outcome = run(
                    task, job.method, job.values, job.seed, settings, checkpoint, advance,
                    checkpoint_seconds,
                )  # fmt: skip
                done = {**dataclasses.asdict(job), **outcome.numbers}
                if job.seed == 0 and outcome.detection is not None and not settings.held_out:
                    outcome.detection.plot(folder / f"detection-{job.method}.png")
                write_json(path, done)
                checkpoint.unlink(missing_ok=True)
            numbers.append(done)
            end(job.name, done)
    return numbers


Begin, Advance = Callable[[str], None], Callable[[int], None]
End = Callable[[str, dict[str, Any]], None]


@contextlib.contextmanager
def _progress(console: Console, runs: int, epochs: int) -> Iterator[tuple[Begin, Advance, End]]:
    """Two bars on a terminal; elsewhere one line per finished run."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        overall = bars.add_task("runs", total=runs)
        current = bars.add_task("epochs", total=epochs)
        finished = 0

        def end(name: str, numbers: dict[str, Any]) -> None:
            nonlocal finished
            finished += 1
            bars.update(overall, completed=finished)
            if not console.is_terminal:
                accuracy = 100 * numbers["test_accuracy"]
                print(f"[{finished}/{runs}] {name}: {accuracy:.1f} %", flush=True)

        yield (
            lambda name: bars.update(current, description=name, completed=0),
            lambda epoch: bars.update(current, completed=epoch),
            end,
        )


def _finish_tuning(
    names: list[str],
    jobs: list[Job],
    numbers: list[dict[str, Any]],
    folder: Path,
    labels: str,
    settings: Settings,
    console: Console,
) -> None:
    """Held-out "test" labels are the given ones here: accuracy is agreement with noisy labels."""
    chosen: dict[str, Any] = {}
    for name in names:
        tried = [
            {"values": job.values, "held_out_noisy_accuracy": number["test_accuracy"]}
            for job, number in zip(jobs, numbers)
            if job.method == name
        ]
        best = max(tried, key=lambda one: one["held_out_noisy_accuracy"])
        chosen[name] = {"chosen": best["values"], "tried": tried}
        console.print(f"{name}: {best['values']} ({100 * best['held_out_noisy_accuracy']:.1f} %)")
    result = {
        "labels": labels,
        "settings": dataclasses.asdict(settings),
        "machine": results.machine(),
        "methods": chosen,
    }
    write_json(folder / "tuning.json", result)
    console.print(f"written: {folder / 'tuning.json'}", soft_wrap=True)


if __name__ == "__main__":
    app()
