"""The measurement of memory, on allocations of known size."""

import sys

import pytest
import torch
from fake_benchmark import Doubling

from robustcore.benchmarks import memory
from robustcore.benchmarks.bandwidth import advised_empty_like, copy_call, read_call
from robustcore.benchmarks.plots import check_matplotlib, plot_report
from robustcore.benchmarks.registry import Case
from robustcore.benchmarks.report import assemble_row

MIB = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/clear_refs")
def test_peak_counts_what_was_freed_again_and_not_what_was_there_before():
    existing = torch.ones(64 * MIB // 4)
    growth = memory._peak_growth(lambda k: (existing + 1).sum())
    if growth is None:
        pytest.skip("this system does not let a process reset its peak")
    # The kernel counts resident pages in batches per thread.
    assert 63 * MIB <= growth <= 72 * MIB
    assert memory._peak_growth(lambda k: existing.sum()) < 8 * MIB


def test_the_copy_writes_a_fresh_equal_buffer():
    source = torch.arange(3 * MIB // 4, dtype=torch.float32)
    copy = copy_call(source)(0)
    assert torch.equal(copy, source)
    assert copy.data_ptr() != source.data_ptr()
    assert advised_empty_like(source[:0]).numel() == 0
    assert read_call(source)(0) == source.sum()


def test_plots_hold_a_bar_for_every_ratio(tmp_path):
    pytest.importorskip("matplotlib")
    benchmark = Doubling()
    results = [
        {"name": name, "kind": kind, "note": "", "median_s": seconds}
        for name, kind, seconds in (("robustcore", "operator", 1.0), ("eager", "eager", 2.5))
    ]
    case = Case(benchmark.sizes[0], "forward", "cpu")
    report = {
        "rows": [assemble_row(benchmark, case, results, [])],
        "machine": {"cpu": "a processor"},
        "threads": 2,
        "versions": {"torch": "2.13"},
    }
    path = tmp_path / "new" / "plot.svg"
    plot_report(report, path)
    assert path.read_text().count("<svg") == 1


def test_plots_say_what_they_can_write(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .svg, .png, .pdf, got 'plot.txt'"):
        check_matplotlib(tmp_path / "plot.txt")


def test_a_failing_measurement_is_told_and_does_not_stop_the_run(monkeypatch):
    """The fresh process knows nothing of the fake benchmark and fails."""
    from robustcore.benchmarks import Settings, runner

    monkeypatch.setattr(runner, "probe_source", lambda device: torch.ones(1024))
    benchmark = Doubling()
    row = runner.measure_row(benchmark, Case(benchmark.sizes[1], "forward", "cpu"), Settings())
    assert row["extra_bytes"] == {}
    assert row["skipped"][-1]["name"] == "extra memory"
    assert "family must be one of" in row["skipped"][-1]["reason"]
