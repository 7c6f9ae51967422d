"""The executor names the bug of each broken kernel, and goes on working afterwards."""

import re
from pathlib import Path

import pytest
import torch
from simt.harness import Executor

# Read from the source, not from the module: collecting tests must not build anything.
BROKEN = {
    name: (kind, kind_alone or None)
    for name, kind, kind_alone in re.findall(
        r'RC_SIMT_BROKEN\w*\((\w+),\s*"([^"]+)",\s*(?:"([^"]+)"|nullptr)\)',
        Path(__file__).with_name("broken_kernel.cpp").read_text(),
    )
}
SEEN_ALONE = [name for name, (_, kind_alone) in BROKEN.items() if kind_alone]


def run_row_sum(simt: Executor) -> None:
    values, sums = torch.ones(2, 64), torch.empty(2)
    simt.run("row_sum", values=values, sums=sums, columns=64)
    assert sums.tolist() == [64.0, 64.0]


def test_list_is_complete(simt: Executor) -> None:
    assert {
        name: simt.module.expected_errors(name) for name in simt.module.broken_kernels()
    } == BROKEN


@pytest.mark.parametrize("name", BROKEN)
def test_recorded(simt: Executor, name: str) -> None:
    kind, _ = BROKEN[name]
    assert simt.module.records_accesses()
    with pytest.raises(simt.module.SimtError, match=f"^{kind}: "):
        simt.module.run_broken(name)
    run_row_sum(simt)


@pytest.mark.parametrize("name", SEEN_ALONE)
def test_by_schedules_and_guards_alone(simt: Executor, name: str) -> None:
    """Also without the recorder, for the bugs that show in results, faults or waiting."""
    _, kind = BROKEN[name]
    simt.module.record_accesses(False)
    try:
        with pytest.raises(simt.module.SimtError, match=f"^{kind}: "):
            simt.module.run_broken(name)
        run_row_sum(simt)
    finally:
        simt.module.record_accesses(True)


def test_message_says_where(simt: Executor) -> None:
    with pytest.raises(simt.module.SimtError) as caught:
        simt.module.run_broken("missing_second_barrier")
    message = str(caught.value)
    assert "missing_second_barrier_kernel, block 0, thread" in message
    assert "of shared array 'buffer' (256 bytes)" in message
    with pytest.raises(simt.module.SimtError, match=r"in broken\.cuh:\d+ with 40 of"):
        simt.module.run_broken("barrier_after_exit")
    with pytest.raises(simt.module.SimtError, match="0 bytes past the end of 'input'"):
        simt.module.run_broken("read_past_end")


class TestArguments:
    """Mistakes in the call of a case are errors of Python's own kinds."""

    def test_unknown_case(self, simt: Executor) -> None:
        with pytest.raises(ValueError, match="there is no case 'none'"):
            simt.run("none")

    def test_missing(self, simt: Executor) -> None:
        with pytest.raises(ValueError, match="asks for 'sums', which was not passed"):
            simt.run("row_sum", values=torch.ones(4), columns=4)

    def test_superfluous(self, simt: Executor) -> None:
        with pytest.raises(ValueError, match="never asks for 'rows', which was passed"):
            simt.run("row_sum", values=torch.ones(4), sums=torch.empty(1), columns=4, rows=1)

    def test_wrong_dtype(self, simt: Executor) -> None:
        with pytest.raises(ValueError, match="'values' must have dtype float32, got float64"):
            simt.run(
                "row_sum", values=torch.ones(4, dtype=torch.float64), sums=torch.empty(1), columns=4
            )

    def test_wrong_kind(self, simt: Executor) -> None:
        with pytest.raises(ValueError, match="'columns' must be an integer"):
            simt.run("row_sum", values=torch.ones(4), sums=torch.empty(1), columns=4.0)

    def test_inputs_keep_their_values(self, simt: Executor) -> None:
        values = torch.arange(64.0)
        simt.run("shared_reverse", values=values, reversed=torch.empty(64))
        assert torch.equal(values, torch.arange(64.0))
