"""The report: what every row holds, who is left out and why, and that targets are told honestly."""

import json
import math
import re

import pytest
import torch
from fake_benchmark import Doubling

from robustcore.benchmarks import Settings, run_benchmarks, runner, select_benchmarks
from robustcore.benchmarks.contestants import bind
from robustcore.benchmarks.machine import result_file_name
from robustcore.benchmarks.registry import Case, Contestant
from robustcore.benchmarks.report import write_report
from robustcore.benchmarks.tables import print_report
from robustcore.benchmarks.targets import Target, evaluate_targets, verdict


@pytest.fixture(scope="module")
def report():
    original = runner.probe_source
    runner.probe_source = lambda device: torch.ones(1024)
    try:
        steps = []
        settings = Settings(quick=True, progress=lambda *step: steps.append(step))
        made = run_benchmarks([Doubling()], settings)
    finally:
        runner.probe_source = original
    assert steps[0][1:] == (0, 5)
    assert steps[-1] == ("done", 5, 5)
    return made


def row(report, size, passes):
    (found,) = [r for r in report["rows"] if (r["size"], r["passes"]) == (size, passes)]
    return found


def test_every_size_of_the_device_and_every_pass_has_a_row(report):
    assert [(r["size"], r["passes"]) for r in report["rows"]] == [
        ("[8]", "forward"),
        ("[8]", "forward+backward"),
        ("[4096]", "forward"),
        ("[4096]", "forward+backward"),
    ]


def test_who_cannot_run_is_left_out_with_the_reason(report):
    for each in report["rows"]:
        assert {s["name"]: s["reason"] for s in each["skipped"]} == {
            "peer": "not installed",
            "broken": "RuntimeError: first line",
        }


def test_rates_and_ratios_follow_from_the_medians(report):
    measured = row(report, "[4096]", "forward")
    median = {c["name"]: c["median_s"] for c in measured["contestants"]}
    assert list(median) == ["robustcore", "eager", "copy", "read"]
    assert measured["speedups"] == {"eager": median["eager"] / median["robustcore"]}
    rate = 12 * 4096 / median["robustcore"]
    assert measured["gb_per_s"] == pytest.approx(rate / 1e9)
    assert measured["copy_gb_per_s"] == pytest.approx(2 * 4096 / median["copy"] / 1e9)
    assert measured["fraction_of_copy"] == pytest.approx(rate * median["copy"] / (2 * 4096))
    read = 4 * 4096 / median["robustcore"]
    assert measured["fraction_of_read"] == pytest.approx(read * median["read"] / 4096)
    assert measured["cache_resident"] is True


def test_small_sizes_claim_no_bandwidth(report):
    assert row(report, "[8]", "forward")["fraction_of_copy"] is None


def test_targets_are_held_against_the_run(report):
    verdicts = {t["label"]: t["verdict"] for t in report["targets"]}
    assert verdicts == {
        "not slower than eager by far": "PASS",
        "impossible": "MISS",
        "not compiled": "NOT MEASURED",
        "exact": "PASS",
    }


def test_an_error_below_half_a_unit_in_the_last_place_counts_as_that(report):
    (accuracy,) = report["accuracy"]
    assert accuracy["quantities"]["output"]["ratio"] == 1.0
    assert accuracy["worst_ratio"] == pytest.approx(3.0)


def test_the_file_is_json_and_says_where_it_was_measured(report, tmp_path):
    path = tmp_path / "results" / result_file_name(report)
    write_report(report, path)
    assert list(path.parent.iterdir()) == [path]
    read = json.loads(path.read_text())
    assert read["rows"] == report["rows"]
    assert read["machine"]["cores"] >= 1
    assert read["versions"]["torch"] == torch.__version__
    assert set(read) >= {"format", "date", "git", "threads", "device", "method", "targets"}


def test_nan_and_infinity_become_null(report, tmp_path):
    path = tmp_path / "report.json"
    write_report({"a": [math.inf, {"b": math.nan}], "c": 1.0}, path)
    assert json.loads(path.read_text()) == {"a": [None, {"b": None}], "c": 1.0}


def test_a_failing_write_leaves_the_old_file(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_report({"a": object()}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "old"


def test_tables_show_every_contestant_and_every_miss(report):
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    print_report(report, Console(file=text, width=80))
    shown = text.getvalue()
    assert "MISS" in shown
    assert "skipped broken: RuntimeError: first line" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_operator_itself_must_not_be_skipped():
    class Broken(Doubling):
        def contestants(self, case):
            def fail(x):
                raise RuntimeError("wrong")

            return (lambda: Contestant("robustcore", "operator", fail),)

    with pytest.raises(RuntimeError, match="wrong"):
        run_benchmarks([Broken()], Settings(quick=True))


def test_backward_passes_compute_every_gradient():
    benchmark = Doubling()
    case = Case(benchmark.sizes[0], "forward+backward", "cpu")
    call = bind(Contestant("x", "operator", lambda x: 3 * x), case, [benchmark.inputs(case, 0)])
    _, (gradient,) = call(5)
    assert gradient.tolist() == [3.0] * 8


def test_forward_passes_record_no_graph():
    benchmark = Doubling()
    case = Case(benchmark.sizes[0], "forward", "cpu")
    weight = torch.ones(8, requires_grad=True)
    call = bind(
        Contestant("x", "operator", lambda x: x * weight), case, [benchmark.inputs(case, 0)]
    )
    assert not call(0).requires_grad


@pytest.mark.parametrize(
    ("value", "at_least", "expected"),
    [
        (2.0, True, "PASS"),
        (1.999, True, "MISS"),
        (2.001, False, "MISS"),
        (None, True, "NOT MEASURED"),
        (math.nan, True, "MISS"),
        (math.inf, False, "MISS"),
    ],
)
def test_verdicts(value, at_least, expected):
    assert verdict(value, 2.0, at_least=at_least) == expected


def test_the_fastest_of_a_kind_counts():
    rows = [
        {
            "benchmark": "b",
            "size": "s",
            "passes": "forward",
            "contestants": [{"name": "one", "kind": "peer"}, {"name": "two", "kind": "peer"}],
            "speedups": {"one": 3.0, "two": 1.5},
        }
    ]
    target = Target("t", "speedup:peer", 2.0, "s", "forward")
    (result,) = evaluate_targets("b", [target], rows, [], "cpu")
    assert (result["value"], result["verdict"]) == (1.5, "MISS")


def test_memory_is_compared_with_the_thriftiest_of_a_kind():
    row = {
        "benchmark": "b",
        "size": "s",
        "passes": "forward",
        "operator_name": "ours",
        "contestants": [{"name": n, "kind": "peer"} for n in ("one", "two", "unmeasured")],
        "extra_bytes": {"ours": 300, "one": 1100, "two": 900},
        "gradient_bytes": 100,
    }

    def value(metric, row):
        target = Target("t", metric, 0.5, "s", "forward", at_least=False)
        (result,) = evaluate_targets("b", [target], [row], [], "cpu")
        return result["value"], result["verdict"]

    assert value("memory_ratio:peer", row) == (300 / 900, "PASS")
    assert value("memory_ratio_beside_gradients:peer", row) == (200 / 800, "PASS")
    assert value("memory_ratio:eager", row) == (None, "NOT MEASURED")
    assert value("memory_ratio:peer", row | {"extra_bytes": {}}) == (None, "NOT MEASURED")


def test_targets_name_sizes_and_passes_that_exist():
    for benchmark in select_benchmarks():
        labels = {size.label for size in benchmark.sizes}
        assert len(labels) == len(benchmark.sizes)
        for target in benchmark.targets:
            if target.metric != "error_ratio":
                assert target.size in labels
                assert target.passes in benchmark.passes


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="family must be one of losses, merging, pcr"):
        select_benchmarks("loses")
    with pytest.raises(ValueError, match=r"operator must be one of .*gated_cross_entropy.*, got"):
        select_benchmarks("losses", "tall_masks")


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ({"cpu": "AMD EPYC", "cores": 2}, "amd-epyc-2-cores.json"),
        ({"cpu": "Intel(R) Xeon(R) @ 2.2GHz", "cores": 8}, "intel-xeon-2-2ghz-8-cores.json"),
        ({"cpu": "any", "cores": 1, "gpu": "NVIDIA H200"}, "nvidia-h200.json"),
    ],
)
def test_files_are_named_by_the_hardware(machine, name):
    assert result_file_name({"machine": machine}) == name
    assert re.fullmatch(r"[a-z0-9-]+\.json", name)
