"""``robustcore selftest``: every operator against its reference on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import CommandError, check_device, console, print_json, progress

if TYPE_CHECKING:
    import torch

    from ..testing import Finding, OperatorCase

__all__ = ["run_selftest", "selftest"]

_MOST_FAILURES_SHOWN = 5


def selftest(
    family: Annotated[
        str | None, typer.Argument(help="losses, merging or pcr; all when left out.")
    ] = None,
    operator: Annotated[str | None, typer.Argument(help="One operator of it.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="Only this one, for example float32.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every operator with its plain PyTorch reference, results and gradients.

    Exit code 1 if anything differs by more than its tolerance.
    """
    from ..testing import operators

    check_device(device)
    try:
        cases = list(operators(family, operator))
    except ValueError as error:
        raise CommandError(str(error)) from error
    with progress() as report:
        results = run_selftest(cases, device, report, dtype)
    failed = [result for result in results if not result["passed"]]
    if as_json:
        print_json({"device": device, "passed": not failed, "results": results})
    else:
        _print_table(results, device)
    if failed or not results:
        raise typer.Exit(1)


def run_selftest(
    cases: Sequence[OperatorCase],
    device: str,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
    only_dtype: str | None = None,
) -> list[dict[str, Any]]:
    """One result for each operator and dtype; an operator without a kernel there is left out.

    Raises:
        CommandError: If no operator is tested in ``only_dtype``; the message lists the others.
    """
    dtypes = sorted({_name(dtype) for case in cases for dtype in case.rtol})
    if only_dtype is not None and only_dtype not in dtypes:
        raise CommandError(f"--dtype must be one of {', '.join(dtypes)}, got {only_dtype!r}")
    work = [
        (case, dtype)
        for case in cases
        if device in case.devices
        for dtype in case.rtol
        if only_dtype in (None, _name(dtype))
    ]
    results = []
    for done, (case, dtype) in enumerate(work):
        report(f"{case.qualified_name} {_name(dtype)}", done, len(work))
        results.append(_check(case, dtype, device))
    report("done", len(work), len(work))
    return results


def _check(case: OperatorCase, dtype: torch.dtype, device: str) -> dict[str, Any]:
    from ..testing import check_sample

    findings: list[Finding] = []
    problems: list[str] = []
    count = 0
    for sample in case.samples():
        count += 1
        try:
            findings += check_sample(case, sample, device, dtype)
        except Exception as error:  # one broken operator must not hide the others
            line = " ".join(str(error).split())[:300]
            problems.append(f"{sample.name}: raised {type(error).__name__}: {line}")
    problems += [
        f"{finding.sample}, {finding.quantity}: {finding.comparison.problem}"
        for finding in findings
        if not finding.comparison.passed
    ]
    return {
        "operator": case.qualified_name,
        "dtype": _name(dtype),
        "exact": case.exact,
        "samples": count,
        "comparisons": len(findings),
        "rtol": 0.0 if case.exact else case.tolerance(dtype)[0],
        "worst_forward": _worst(findings, gradient=False),
        "worst_gradient": _worst(findings, gradient=True),
        "passed": not problems and bool(findings),
        "problems": problems,
    }


def _worst(findings: Sequence[Finding], *, gradient: bool) -> float | None:
    """Largest share of the tolerance that was used; None where nothing finite was compared."""
    used = [f.comparison.used for f in findings if f.gradient is gradient]
    worst = max(used, default=None)
    return None if worst == float("inf") else worst


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _print_table(results: Sequence[dict[str, Any]], device: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"selftest on {device}: worst difference as a share of the tolerance",
        title_justify="left",
        box=None,
        header_style="dim",
        padding=(0, 1, 0, 0),
    )
    table.add_column("operator", overflow="fold", min_width=26)
    table.add_column("dtype", no_wrap=True)
    for heading in ("samples", "rtol", "results", "gradients", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result["operator"],
            result["dtype"],
            str(result["samples"]),
            "exact" if result["exact"] else f"{result['rtol']:.1e}",
            _share(result["worst_forward"]),
            _share(result["worst_gradient"]),
            Text("pass", style="green") if result["passed"] else Text("FAIL", style="bold red"),
        )
    output = console()
    output.print(table)
    for result in results:
        for problem in result["problems"][:_MOST_FAILURES_SHOWN]:
            output.print(Text(f"{result['operator']} {result['dtype']}: {problem}", style="red"))
        if (more := len(result["problems"]) - _MOST_FAILURES_SHOWN) > 0:
            output.print(Text(f"... and {more} more (--json has all)", style="red"))
    passed = sum(result["passed"] for result in results)
    output.print(f"{passed} of {len(results)} passed" if results else "no operator was found")


def _share(worst: float | None) -> str:
    if worst is None:
        return "-"
    return f"{100 * worst:.0f} %" if worst >= 0.1 else f"{100 * worst:.2g} %"
