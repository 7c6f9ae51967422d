"""What a merge command is about: its settings, and all checks before work starts."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .model_files import open_models
from .output import CommandError, Problems, check_device
from .values import assignments, dtype_of, named_models, read_yaml, size_of

__all__ = ["Job", "Settings", "execution", "plan_facts", "prepare", "read_settings"]


@dataclass(frozen=True)
class Settings:
    """The command line and the file of ``--config`` together; as given, not yet checked."""

    base: str
    finetuned: Mapping[str, str]
    output: str | None = None
    method: str = "task_arithmetic"
    options: Mapping[str, Any] = field(default_factory=dict)
    mismatch: str = "error"
    dtype: Any = None
    max_memory: Any = 1 << 30
    device: str = "cpu"
    allow_nonfinite: bool = False
    overwrite: bool = False
    restart: bool = False
    max_shard_size: Any = None


_SWITCHES = ("allow_nonfinite", "overwrite", "restart")


def read_settings(
    models: Sequence[str], config: Path | None, options: Sequence[str], given: Mapping[str, Any]
) -> Settings:
    """Settings from a command line; ``given`` are its options, None where they were left out."""
    values = _from_file(config) if config is not None else {}
    values |= {key: value for key, value in given.items() if value is not None}
    values["options"] = {**(values.get("options") or {}), **assignments("--set", options)}
    if models:
        values["base"] = next(iter(named_models(models[:1]).values()))
        values["finetuned"] = named_models(models[1:])
    if not values.get("base") or not values.get("finetuned"):
        raise CommandError("a merge takes BASE and at least one FINETUNED model")
    return Settings(**values)


def _from_file(path: Path) -> dict[str, Any]:
    """The file's entries; names may have dashes as on the command line."""
    values = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    known = [entry.name for entry in dataclasses.fields(Settings)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise CommandError(
            f"{path}: unknown {', '.join(unknown)}; what can be given is {', '.join(known)}"
        )
    models = values.get("finetuned")
    if isinstance(models, list) and all(isinstance(entry, str) for entry in models):
        values["finetuned"] = named_models(models)
    elif models is not None and not (
        isinstance(models, dict)
        and all(isinstance(text, str) for entry in models.items() for text in entry)
    ):
        raise CommandError(f"{path}: finetuned must be a list or a mapping of paths")
    if not isinstance(values.get("options") or {}, dict):
        raise CommandError(f"{path}: options must be a mapping, got {values['options']!r}")
    for key in ("base", "output", "method", "mismatch", "dtype", "device"):
        if values.get(key) is not None and not isinstance(values[key], str):
            raise CommandError(f"{path}: {key} must be text, got {values[key]!r}")
    for key in _SWITCHES:
        if values.get(key) is not None and not isinstance(values[key], bool):
            raise CommandError(f"{path}: {key} must be true or false, got {values[key]!r}")
    return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A merge that was found to be possible.

    Attributes:
        outputs: The output's files; None without an output.
        resumes: An earlier run into this output was interrupted.
    """

    settings: Settings
    plan: Any
    recipe: Any
    cost: Any
    outputs: Any
    resumes: bool


def prepare(settings: Settings, stack: contextlib.ExitStack) -> Job:
    """Opens and checks everything, so that all that is wrong is told at once.

    ``stack`` closes the files.
    """
    from ..merging.engine.cost import expected_cost
    from ..merging.engine.plan import POLICIES, make_plan
    from ..merging.methods import make_recipe

    problems = Problems()
    recipe = plan = cost = outputs = dtype = None
    with problems.collect():
        recipe = make_recipe("merge", settings.method, len(settings.finetuned), settings.options)
    with problems.collect():
        dtype = None if settings.dtype is None else dtype_of("--dtype", settings.dtype)
    sizes: dict[str, Any] = {"max_memory": None, "max_shard_size": None}
    for key in sizes:
        with problems.collect():
            value = getattr(settings, key)
            size = None if value is None else size_of(f"--{key.replace('_', '-')}", value)
            sizes[key] = size
    settings = dataclasses.replace(settings, **sizes)
    with problems.collect():
        check_device(settings.device)
    if settings.mismatch not in POLICIES:
        problems.found.append(
            f"--mismatch must be one of {', '.join(POLICIES)}, got {settings.mismatch!r}"
        )
    base, models = open_models(settings.base, settings.finetuned, problems, stack)
    complete = base is not None and len(models) == len(settings.finetuned)
    if complete and settings.mismatch in POLICIES:
        with problems.collect():
            plan = make_plan("merge", base, models, mismatch=settings.mismatch, dtype=dtype)
    resumes = False
    if settings.output is not None and base is not None:
        with problems.collect():
            outputs, resumes = _check_output(settings, base, list(models.values()), plan)
    if plan is not None and recipe is not None and isinstance(settings.max_memory, int):
        with problems.collect():
            # Where it is computed does not matter, and may be nowhere.
            how = execution(dataclasses.replace(settings, device="cpu"))
            cost = expected_cost("merge", plan, recipe, how)
    problems.check()
    return Job(settings, plan, recipe, cost, outputs, resumes)


def _check_output(
    settings: Settings, base: Any, models: Sequence[Any], plan: Any
) -> tuple[Any, bool]:
    """The files of the output, and whether there is something to go on with."""
    from ..merging.output import plan_output

    # Where models do not match, there is no plan: the base's tensors are about what is written.
    tensors = plan.outputs() if plan else sorted(base.tensors.values(), key=lambda t: t.key)
    metadata = {"format": "pt"} | (dict(plan.tied) if plan else {})
    assert settings.output is not None
    arguments: dict[str, Any] = {
        "inputs": [file for model in (base, *models) for file in model.files],
        "max_shard_size": settings.max_shard_size,
    }
    planned = plan_output(settings.output, tensors, metadata, overwrite=True, **arguments)
    if not os.path.exists(planned.journal):
        try:
            planned.check_existing(overwrite=settings.overwrite)
        except FileExistsError as error:
            raise CommandError(
                f"{error.filename}: the output exists; --overwrite replaces it"
            ) from error
    folder = planned.folder if os.path.isdir(planned.folder) else os.path.dirname(planned.folder)
    held = sum(_allocated(file.partial) for file in planned.files)
    needed, free = planned.size - held, shutil.disk_usage(folder).free
    if needed > free:
        raise CommandError(f"the output needs {needed} bytes in {folder}, where {free} are free")
    return planned, os.path.exists(planned.journal) and not settings.restart


def _allocated(path: str) -> int:
    """Bytes on the disk that an earlier run has reserved."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0
    return getattr(facts, "st_blocks", 0) * 512


def execution(settings: Settings, progress: Any = None) -> Any:
    """How the engine is to run."""
    import torch

    from ..merging.engine.execute import Execution

    return Execution(
        max_memory=settings.max_memory,
        device=torch.device(settings.device),
        allow_nonfinite=settings.allow_nonfinite,
        progress=progress,
    )


def plan_facts(job: Job, *, sample: bool = False) -> dict[str, Any]:
    """The plan for people and for JSON.

    Args:
        sample: Read and merge a little for an estimate of the time.
    """
    plan, settings, cost = job.plan, job.settings, job.cost
    facts: dict[str, Any] = {
        "output": settings.output,
        "method": settings.method,
        "options": _all_options(settings),
        "models": [
            _model_facts(name, path, model)
            for (name, path), model in zip(
                [("base", settings.base), *settings.finetuned.items()], plan.models, strict=True
            )
        ],
        "parameters": plan.num_parameters,
        "tensors": {
            "merged": len(plan.tensors),
            "carried": len(plan.carried),
            "tied": len(plan.tied),
        },
        "carried": [info.key for info in plan.carried],
        "tied": dict(plan.tied),
        "mismatches": [
            {"difference": str(entry), "action": entry.action} for entry in plan.mismatches
        ],
        "walks": cost.walks,
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
        "buffer_bytes": cost.memory,
    }
    if job.outputs is not None:
        facts["files"] = [file.path for file in job.outputs.files]
    if sample:
        facts |= _estimates(job)
        facts["blocks"] = _blocks(job)
    return facts


def _all_options(settings: Settings) -> dict[str, Any]:
    """Every option of the method: as given, else its default."""
    from ..merging.methods import METHODS

    parameters = inspect.signature(METHODS[settings.method]).parameters
    defaults = {key: entry.default for key, entry in parameters.items() if key != "tasks"}
    return defaults | dict(settings.options)


def _model_facts(name: str, path: str, model: Any) -> dict[str, Any]:
    names = model.tensors.keys() - model.aliases.keys()
    dtypes = {str(model.tensors[key].dtype).removeprefix("torch.") for key in names}
    return {
        "name": name,
        "path": path,
        "kind": "LoRA adapter" if model.is_task_vector else "weights",
        "tensors": len(names),
        "parameters": sum(model.tensors[key].numel for key in names),
        "dtypes": sorted(dtypes),
    }


def _estimates(job: Job) -> dict[str, Any]:
    """Memory of the process, space on the disk, and the time, as far as a sample tells."""
    from ..merging.engine.cost import sampled_rate

    read, seconds = sampled_rate("merge", job.plan, job.recipe, execution(job.settings))
    folder = os.path.dirname(os.path.realpath(job.settings.output or "."))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return {
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "interpreter_bytes": _resident_bytes(),
        "sampled_bytes": read,
        "sampled_seconds": seconds,
        "estimated_seconds": job.cost.bytes_read * seconds / read if read else 0.0,
    }


def _resident_bytes() -> int | None:
    """Memory of this process now, where the system tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _blocks(job: Job) -> list[dict[str, Any]] | None:
    """How LiNeS sees the network; None without it."""
    from ..merging.depth import find_blocks

    depth = job.recipe.depth
    if depth is None:
        return None
    keys = [tensor.key for tensor in job.plan.tensors]
    blocks = find_blocks("merge", keys, depth.blocks)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(blocks.names):
        members = [key for key in keys if blocks.block_of.get(key) == number]
        added = depth.beta * number / (blocks.count - 1)
        rows.append({"block": name, "tensors": len(members), "added_to_alpha": added})
    rest = [key for key in keys if key not in blocks.block_of]
    return [*rows, {"block": "all other tensors", "tensors": len(rest), "added_to_alpha": 0.0}]
