"""``robustcore merge``: models in files, merged into a file."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import (
    CommandError,
    byte_progress,
    console,
    error_console,
    human_bytes,
    print_json,
    told_errors,
)

__all__ = ["merge"]

_LISTED = 20


def merge(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BASE FINETUNED",
            help="The base and the models that were fine-tuned from it, PATH or NAME=PATH each: a "
            "safetensors or PyTorch file, an index of shards, a folder with one of them, or the "
            "folder of a LoRA adapter.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A safetensors file; with --max-shard-size a folder."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="See --list-methods. (default: task_arithmetic)")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "--option",
            metavar="KEY=VALUE",
            help="An option of the method, for example density=0.2 or 'weights=[1, 0.5]'; repeat "
            "it for more.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file with base, finetuned, options (a mapping) and the names of the "
            "options here; the command line wins."
        ),
    ] = None,
    mismatch: Annotated[
        str | None,
        typer.Option(
            help="Where models do not match the base: error, skip, crop or pad. (default: error)"
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the merged tensors; by default that of the base's.")
    ] = None,
    max_memory: Annotated[str | None, typer.Option(help="For all buffers. (default: 1GiB)")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute: cpu or cuda. (default: cpu)")
    ] = None,
    allow_nonfinite: Annotated[
        bool | None,
        typer.Option("--allow-nonfinite/--no-allow-nonfinite", help="Merge NaN and infinities."),
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite/--no-overwrite", help="Replace an output that exists."),
    ] = None,
    restart: Annotated[
        bool | None,
        typer.Option(
            "--restart/--no-restart", help="Forget an interrupted merge into this output."
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Write a folder of files of at most this size.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan, write nothing.")
    ] = False,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="Show all methods with their options.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a report as JSON.")] = False,
) -> None:
    """Merge models that were fine-tuned from one base.

    The output appears when it is complete. After a kill the same command goes on where it was.
    """
    from .merge_plan import method_rows, print_methods, print_plan
    from .merge_setup import plan_facts, prepare, read_settings

    if list_methods:
        if as_json:
            print_json(method_rows())
        else:
            print_methods(method_rows())
        return
    settings = read_settings(
        models or [],
        config,
        options or [],
        {
            "output": output,
            "method": method,
            "mismatch": mismatch,
            "dtype": dtype,
            "max_memory": max_memory,
            "device": device,
            "allow_nonfinite": allow_nonfinite,
            "overwrite": overwrite,
            "restart": restart,
            "max_shard_size": max_shard_size,
        },
    )
    if settings.output is None and not dry_run:
        raise CommandError("--output says where the merged model goes; --dry-run needs none")
    with contextlib.ExitStack() as stack, told_errors():
        job = prepare(settings, stack)
        if dry_run:
            facts = plan_facts(job, sample=True)
            if as_json:
                print_json(facts)
            else:
                print_plan(facts)
            return
        _tell_mismatches(job.plan.mismatches)
        report = _run(job)
        if as_json:
            print_json(report)
        else:
            _print_report(report)


def _tell_mismatches(mismatches: Any) -> None:
    output = error_console()
    for entry in mismatches[:_LISTED]:
        output.print(f"{entry}: {entry.action}", markup=False, soft_wrap=True)
    if len(mismatches) > _LISTED:
        output.print(f"and {len(mismatches) - _LISTED} more differences")


def _run(job: Any) -> dict[str, Any]:
    from ..merging.merge import write_merged
    from .merge_setup import execution, plan_facts

    settings, plan = job.settings, job.plan
    if job.resumes:
        error_console().print("going on with an interrupted merge")
    width = plan.bytes_read / max(1, plan.num_parameters)
    start = time.perf_counter()
    with _hint_about_resuming(), byte_progress(width) as progress:
        report = write_merged(
            "merge",
            plan,
            job.recipe,
            settings.output,
            execution(settings, progress),
            overwrite=settings.overwrite,
            restart=settings.restart,
            max_shard_size=settings.max_shard_size,
        )
    return plan_facts(job) | {
        "seconds": time.perf_counter() - start,
        "resumed": job.resumes,
        "walks": report.walks,
        "alpha": report.alpha,
        "zero_sign": report.zero_sign,
        "cancelled": report.cancelled,
        "nonfinite": dict(zip(("base", "differences", "merged"), report.nonfinite, strict=True)),
    }


@contextlib.contextmanager
def _hint_about_resuming() -> Any:
    try:
        yield
    except KeyboardInterrupt:
        error_console().print("what is done stays; the same command goes on from there")
        raise


def _print_report(report: dict[str, Any]) -> None:
    output = console()
    tensors = report["tensors"]
    output.print(
        f"merged {len(report['models']) - 1} models by {report['method']}: "
        f"{report['parameters']:,} parameters in {tensors['merged']} tensors, "
        f"{tensors['carried']} carried from the base, {tensors['tied']} tied",
        markup=False,
        soft_wrap=True,
    )
    if report["alpha"] is not None:
        output.print(f"LiNeS: alpha = {report['alpha']:.6g}")
    if report["cancelled"]:
        sign = {1: "+", -1: "-", 0: "neither"}[report["zero_sign"]]
        output.print(f"{report['cancelled']:,} votes cancelled out; elected: {sign}")
    if any(report["nonfinite"].values()):
        counts = ", ".join(f"{count:,} in {where}" for where, count in report["nonfinite"].items())
        output.print(f"weights that are not finite: {counts}", soft_wrap=True)
    output.print(
        f"wrote {report['output']} ({human_bytes(report['bytes_written'])}) in "
        f"{report['seconds']:.1f} s",
        markup=False,
        soft_wrap=True,
    )
