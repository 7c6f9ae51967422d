"""Eight tasks, one small vision transformer: how much accuracy each way of merging keeps.

    python examples/merge_tasks.py                              # 3 seeds
    python examples/merge_tasks.py --seeds 5 --jobs 2           # in two processes
    python examples/merge_tasks.py --base-epochs 5 --epochs 2   # a quick look

A vision transformer is trained on the handwritten digits that come with scikit-learn and fine-tuned
on the eight tasks of ``robustcore demo``: four change the image, four ask another question about
it. Each task's head is trained first, on the frozen base, and stays outside of what is merged.
Every choice (scale, density, β of LiNeS, λ of each task) is made by accuracy on validation images,
with ``robustcore.merging.search`` and ``select_lambdas``; what is reported comes from test images.
Every seed draws its own split of the images. Needs ``pip install 'robustcore[examples]'``.

A run that is killed continues where models or numbers of a seed are missing: call the same command
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from cifar10n_training.files import load_tensors, read_json, save_tensors, write_bytes, write_json
from merge_tasks_training import results
from merge_tasks_training.methods import METHODS, Comparison
from merge_tasks_training.tasks import TASKS, Models, Settings, train
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from robustcore.demo.data import load_digits
from robustcore.demo.training import reproducible

# Of every seed, besides the methods.
FACTS = ("processor_seconds", "mean_cosine", "halves", "kept_by_tasks", "kept_by_tasks_ties")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(2)


@app.command()
def compare(
    seeds: Annotated[int, typer.Option(min=1, help="How many; seeds count from 0.")] = 3,
    output: Annotated[Path, typer.Option(help="Where results go.")] = Path("merge-tasks-results"),
    jobs: Annotated[int, typer.Option(min=1, help="Seeds at a time, one thread each.")] = 1,
    base_epochs: Annotated[int, typer.Option(min=1)] = Settings.base_epochs,
    epochs: Annotated[int, typer.Option(min=1, help="Per task.")] = Settings.fine_tuning_epochs,
    blocks: Annotated[int, typer.Option(min=2)] = Settings.blocks,
    width: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = Settings.width,
) -> None:
    """Fine-tune on eight tasks, merge in every way, compare."""
    if width % 16:
        fail(f"--width must be a multiple of 16, got {width}")
    settings = Settings(
        base_epochs=base_epochs, fine_tuning_epochs=epochs, blocks=blocks, width=width
    )
    console = Console()
    try:
        _check_same(output / "settings.json", dataclasses.asdict(settings))
        write_json(output / "settings.json", dataclasses.asdict(settings))
        found = _run_all(list(range(seeds)), settings, output, jobs, console)
        result = {
            "data": "digits of scikit-learn",
            "tasks": len(TASKS),
            "seeds": seeds,
            "settings": dataclasses.asdict(settings),
            "machine": results.machine() | {"threads": "1"},
            **{key: [one[key] for one in found] for key in FACTS},
            "parameters": found[0]["parameters"],
            "head_bytes": found[0]["head_bytes"],
            "methods": results.gather(found),
        }
        write_json(output / "results.json", result)
        results.plot(result, output / "results.png")
        write_bytes(output / "results.md", results.markdown(result).encode())
    except OSError as error:
        fail(f"{error.filename or output}: {error.strerror or error}")
    console.print(results.table(result))
    console.print(f"written: {output / 'results.json'}, results.md, results.png", soft_wrap=True)


def _check_same(path: Path, expected: dict[str, Any]) -> None:
    """Numbers of different settings must not meet in one result."""
    found = read_json(path) or expected
    for name, value in expected.items():
        if found.get(name) != value:
            fail(
                f"{path.parent} holds runs with {name} = {found.get(name)}, now it is {value}; "
                "choose another --output or remove that folder"
            )


def run_seed(
    seed: int, settings: Settings, folder: Path, advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Everything about one seed."""
    start = time.process_time()
    digits = load_digits(seed)
    with reproducible():
        saved = load_tensors(path := folder / f"seed-{seed}.pt")
        if saved is None:
            models = train(digits, settings, seed, advance)
            saved = models.saved() | {"seconds": time.process_time() - start}
            save_tensors(path, saved)
        else:
            models = Models.restored(saved, settings)
        trained = time.process_time()
        found = Comparison(models, digits, advance).run()
    seconds = {"training": saved["seconds"], "merging": time.process_time() - trained}
    return {"seed": seed, "processor_seconds": seconds, **found}


def _run_all(
    seeds: list[int], settings: Settings, output: Path, jobs: int, console: Console
) -> list[dict[str, Any]]:
    models = output / "models"
    paths = {seed: output / "runs" / f"seed-{seed}.json" for seed in seeds}
    done = {seed: found for seed, path in paths.items() if (found := read_json(path)) is not None}
    missing = [seed for seed in seeds if seed not in done]
    steps = settings.epochs + len(METHODS)

    def keep(seed: int, found: dict[str, Any]) -> None:
        write_json(paths[seed], found)
        done[seed] = found
        if not console.is_terminal:
            print(f"[{len(done)}/{len(seeds)}] seed {seed}", flush=True)

    if jobs == 1 or len(missing) < 2:
        with _progress(console, len(missing) * steps) as advance:
            for seed in missing:
                keep(seed, run_seed(seed, settings, models, advance))
    else:
        context = multiprocessing.get_context("spawn")
        with (
            _progress(console, len(missing)) as advance,
            ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool,
        ):
            running = {pool.submit(run_seed, seed, settings, models): seed for seed in missing}
            for future in as_completed(running):
                keep(running[future], future.result())
                advance()
    return [done[seed] for seed in seeds]


@contextlib.contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; elsewhere one line per finished seed."""
    with Progress(
        TextColumn("training and merging"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=steps)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    app()
