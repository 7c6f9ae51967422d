"""``robustcore masks``: TALL-masks of models in files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from .masks_report import print_built, print_inspected
from .model_files import check_new_file, open_models
from .output import (
    CommandError,
    Problems,
    byte_progress,
    console,
    human_bytes,
    print_json,
    told_errors,
)
from .values import named_models, size_of

__all__ = ["masks"]

masks = typer.Typer(
    name="masks",
    help="Make, look at and use the masks of tasks (TALL-masks).",
    add_completion=False,
)

File = Annotated[str, typer.Argument(metavar="FILE", help="A file of masks.", show_default=False)]
Task = Annotated[str, typer.Option("--task", help="The name of the task.", show_default=False)]
Output = Annotated[
    str, typer.Option("--output", "-o", help="The file to write.", show_default=False)
]
Memory = Annotated[str, typer.Option(help="For all buffers; masks are not counted.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print a report as JSON.")]


@masks.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@masks.command()
def build(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE FINETUNED",
            help="The base and the models that were fine-tuned from it, PATH or NAME=PATH each.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Where the masks go; without it only densities are shown."
        ),
    ] = None,
    lambdas: Annotated[
        str | None,
        typer.Option(
            help="Values of λ to show densities for, for example 0.2,0.3,0.4 (default: what is "
            "selected, without --output 0.2,0.3,0.4,0.5,0.6)"
        ),
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="The λ of the masks that are written: one for all tasks, or NAME=0.3,... for "
            "every task. (default: 0.4)"
        ),
    ] = None,
    consensus: Annotated[
        int | None,
        typer.Option(metavar="K", help="Write one mask: what at least K tasks keep."),
    ] = None,
    comparison: Annotated[
        str, typer.Option(help="strict (>, as the authors' code) or paper (≥).")
    ] = "strict",
    merged_output: Annotated[
        str | None,
        typer.Option(
            help="Also write the multi-task vector, which `masks apply` needs, to this file."
        ),
    ] = None,
    max_memory: Memory = "1GiB",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make masks from a base and fine-tuned models, reading each once."""
    paths = named_models(models[1:])
    if not paths:
        raise CommandError("masks take BASE and at least one FINETUNED model")
    problems = Problems()
    chosen, shown, memory = None, [], 0
    with problems.collect():
        chosen = _selection(select, list(paths))
    with problems.collect():
        shown = _lambdas(lambdas, chosen, bool(output))
    with problems.collect():
        memory = size_of("--max-memory", max_memory)
    if comparison not in ("strict", "paper"):
        problems.found.append(f"--comparison must be strict or paper, got {comparison!r}")
    if consensus is not None and not 1 <= consensus <= len(paths):
        problems.found.append(f"--consensus must be from 1 to {len(paths)}, got {consensus}")
    if merged_output and output and os.path.realpath(merged_output) == os.path.realpath(output):
        problems.found.append("--output and --merged-output must be different files")
    with contextlib.ExitStack() as stack, told_errors():
        plan = _mask_plan(named_models(models[:1]), paths, problems, stack)
        inputs = [] if plan is None else [f for m in plan.merge.models for f in m.files]
        count = 0 if plan is None else plan.layout.num_parameters
        for path, size in ((output, len(paths) * count // 8), (merged_output, 4 * count)):
            if path is not None:
                with problems.collect():
                    check_new_file(path, size, inputs, overwrite)
        problems.check()
        assert plan is not None
        vector = None if merged_output is None else _vector(plan, merged_output, inputs, overwrite)
        width = plan.merge.bytes_read / max(1, count)
        with contextlib.nullcontext() if vector is None else vector, byte_progress(width) as report:
            built = plan.build(
                lambdas=shown,
                comparison=comparison,
                max_memory=memory,
                progress=report,
                vector=vector,
            )
            if output is not None:
                _save(built, chosen, consensus, output)
        facts = {
            "tasks": list(built.masks.tasks),
            "parameters": count,
            "lambdas": list(built.masks.lambdas),
            "densities": built.masks.densities.tolist(),
            "selected": chosen,
            "consensus": consensus,
            "output": output,
            "merged_output": merged_output,
            "base_sha256": built.hashes["base"],
        }
        if output is not None:
            facts["bytes"] = os.path.getsize(output)
        print_json(facts) if as_json else print_built(facts)


def _mask_plan(
    base: Mapping[str, str],
    paths: Mapping[str, str],
    problems: Problems,
    stack: contextlib.ExitStack,
) -> Any:
    from ..merging.mask_stream import plan_masks

    first, opened = open_models(next(iter(base.values())), paths, problems, stack)
    if first is not None and len(opened) == len(paths):
        with problems.collect():
            return plan_masks("masks build", first, opened)
    return None


def _vector(plan: Any, path: str, inputs: Sequence[str], overwrite: bool) -> Any:
    from ..merging.output import CheckpointWriter

    return CheckpointWriter(
        path,
        plan.vector_tensors(),
        {"format": "pt"},
        identity={"multi-task vector": list(plan.merge.tasks)},
        inputs=inputs,
        overwrite=overwrite,
        restart=True,
    )


def _save(built: Any, chosen: Any, consensus: int | None, output: str) -> None:
    from ..merging.mask_file import write_mask_file

    packed = built.masks.select(chosen)
    if consensus is not None:
        packed = packed.consensus(consensus)
    write_mask_file(packed, output, hashes=built.hashes)


def _selection(text: str | None, tasks: Sequence[str]) -> float | dict[str, float]:
    """One λ for all tasks, or one for each by name."""
    if text is None:
        return 0.4
    if "=" not in text:
        return _number("--select", text)
    chosen = {}
    for entry in text.split(","):
        name, equals, value = entry.rpartition("=")
        name = name.strip()
        if not equals or name not in tasks or name in chosen:
            raise CommandError(
                f"--select must be λ or NAME=λ once for each of {', '.join(tasks)}, got {text!r}"
            )
        chosen[name] = _number("--select", value)
    missing = [name for name in tasks if name not in chosen]
    if missing:
        raise CommandError(f"--select must name every task, got none for {', '.join(missing)}")
    return chosen


def _lambdas(text: str | None, chosen: Any, selects: bool) -> list[float]:
    """The values of λ that are computed: those asked for, and those selected."""
    values = [0.2, 0.3, 0.4, 0.5, 0.6] if text is None and not selects else []
    if text is not None:
        values = [_number("--lambdas", entry) for entry in text.split(",")]
    selected = chosen.values() if isinstance(chosen, dict) else [chosen]
    if selects:
        values += sorted({value for value in selected if value is not None} - set(values))
    return values


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CommandError(f"{option} must hold numbers, got {text.strip()!r}") from None


@masks.command()
def inspect(file: File, as_json: Json = False) -> None:
    """Show what a file of masks holds: tasks, densities, overlaps."""
    with told_errors():
        from ..merging import read_mask_file

        found = read_mask_file(file)
        packed = found.masks
        parameters, tasks = packed.num_parameters, len(packed.tasks)
        overlap = packed.overlap().tolist()
        size = os.path.getsize(file)
        facts = {
            "file": file,
            "bytes": size,
            "bytes_per_parameter_and_task": size / (parameters * tasks) if parameters else None,
            "parameters": parameters,
            "tensors": len(packed.layout.parameters),
            "comparison": packed.comparison,
            "tasks": [
                {
                    "name": name,
                    "lambda": None if packed.lambdas is None or packed.k else packed.lambdas[index],
                    "kept": overlap[index][index],
                    "density": overlap[index][index] / max(1, parameters),
                }
                for index, name in enumerate(packed.tasks)
            ],
            "consensus": packed.k,
            "sources": list(packed.sources),
            "overlap": overlap,
            "histogram": packed.histogram().tolist(),
            "base_sha256": found.base_sha256,
            "merged_sha256": found.merged_sha256,
            "embedded": [
                name
                for name, model in (("base", found.base), ("merged", found.merged))
                if model is not None
            ],
        }
        print_json(facts) if as_json else print_inspected(facts)


@masks.command()
def apply(
    file: File,
    task: Task,
    output: Output,
    base: Annotated[
        str | None, typer.Option(help="The base; by default the one that is in FILE.")
    ] = None,
    merged: Annotated[
        str | None,
        typer.Option(
            help="The multi-task vector (`masks build --merged-output`); by default the one in "
            "FILE."
        ),
    ] = None,
    max_memory: Memory = "1GiB",
    max_shard_size: Annotated[
        str | None, typer.Option(help="Write a folder of files of at most this size.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the model of one task: base + mask * multi-task vector."""
    with contextlib.ExitStack() as stack, told_errors():
        from ..merging.checkpoints import open_checkpoint
        from ..merging.mask_stream import apply_to_file

        memory = size_of("--max-memory", max_memory)
        shard = None if max_shard_size is None else size_of("--max-shard-size", max_shard_size)
        found = _read(file, task)
        models: dict[str, Any] = {}
        for name, path, embedded in (
            ("base", base, found.base),
            ("merged", merged, found.merged),
        ):
            if path is None and embedded is None:
                raise CommandError(f"--{name} must be given: {file} does not hold it")
            models[name] = open_checkpoint(embedded if path is None else path, name)
            stack.callback(models[name].close)
        opened = models.values()
        width = sum(max(t.dtype.itemsize for t in m.tensors.values()) for m in opened if m.tensors)
        with byte_progress(width) as report:
            apply_to_file(
                "masks apply",
                found.masks,
                task,
                models["base"],
                models["merged"],
                output,
                hashes={
                    "base": found.base_sha256 if base is not None else None,
                    "merged": found.merged_sha256 if merged is not None else None,
                },
                max_memory=memory,
                progress=report,
                max_shard_size=shard,
                overwrite=overwrite,
            )
        checked = found.base_sha256 is not None and found.merged_sha256 is not None
        facts = {"task": task, "output": output, "parameters": found.masks.num_parameters}
        if as_json:
            print_json(facts | {"models_checked": checked})
            return
        note = "" if checked else " (the file does not say which models it is for)"
        console().print(f"wrote {output}: {task}{note}", markup=False, soft_wrap=True)


@masks.command()
def extract(
    file: File,
    task: Task,
    output: Output,
    state_dict: Annotated[
        bool,
        typer.Option("--state-dict", help="Write booleans in the shapes of the parameters."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the mask of one task to a file of its own."""
    with told_errors():
        from ..merging.mask_file import write_mask_file
        from ..merging.mask_stream import unpack_to_file
        from ..merging.packed_masks import PackedMasks

        found = _read(file, task)
        packed = found.masks
        size = packed.num_parameters if state_dict else packed.num_parameters // 8
        check_new_file(output, size, [file], overwrite)
        if state_dict:
            unpack_to_file(packed, task, output, inputs=[file], overwrite=overwrite)
        else:
            index = packed.tasks.index(task)
            lambdas = packed.lambdas
            if lambdas is not None and packed.k is None:
                lambdas = lambdas[index : index + 1]
            alone = PackedMasks(
                packed.words[index : index + 1],
                packed.layout,
                [task],
                lambdas=lambdas,
                comparison=packed.comparison,
                k=packed.k,
                sources=packed.sources,
            )
            hashes = {"base": found.base_sha256 or "", "merged": found.merged_sha256 or ""}
            write_mask_file(alone, output, hashes=hashes)
        written = os.path.getsize(output)
        if as_json:
            print_json({"task": task, "output": output, "bytes": written})
        else:
            console().print(
                f"wrote {output} ({human_bytes(written)})", markup=False, soft_wrap=True
            )


def _read(file: str, task: str) -> Any:
    from ..merging import read_mask_file

    found = read_mask_file(file)
    if task not in found.masks.tasks:
        names = ", ".join(found.masks.tasks)
        raise CommandError(f"--task must be one of {names}, got {task!r}")
    return found
