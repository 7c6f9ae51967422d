"""What the commands report."""

import json

import pytest
import torch

from robustcore.cli import main as cli
from robustcore.cli.info import cuda_kernels_for
from robustcore.testing import OperatorCase, Sample, operators


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.run(arguments)
        return code, capsys.readouterr().out

    return call


def test_info_lists_every_operator_with_its_kernels(run):
    code, out = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][0]["threads"] == torch.get_num_threads()
    assert "cpu" in facts["operators"]["gated_cross_entropy"]
    # Operators that are made of others in Python need no kernels of their own, but those of others.
    for name in ("gated_cross_entropy", "linear_gated_cross_entropy"):
        assert ("cuda" in facts["operators"][name]) == facts["build"]["cuda"]


def test_info_as_tables(run):
    code, out = run("info")
    assert code == 0
    assert torch.__version__ in out
    assert "gated_cross_entropy" in out


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "80-real;90-real;100", "CUDA kernels for sm_80"),
        ((8, 9), "80-real;90-real;100", "CUDA kernels for sm_80"),
        ((9, 0), "80-real;90-real;100", "CUDA kernels for sm_90"),
        ((12, 0), "80-real;90-real;100", "PTX of compute_100"),
        ((10, 3), "100a-real;90", "CUDA kernels for sm_100"),
        ((7, 5), "80-real;90-real;100", "none: compiled for"),
        ((8, 6), "89-real;90", "none: compiled for"),
        ((9, 0), "80-virtual", "PTX of compute_80"),
    ],
)
def test_which_cuda_kernels_run(capability, architectures, expected):
    build = {"cuda": True, "cuda_architectures": architectures}
    assert expected in cuda_kernels_for(capability, build)


def test_without_cuda_kernels_none_run():
    build = {"cuda": False, "cuda_architectures": ""}
    assert cuda_kernels_for((9, 0), build).startswith("none: this build")


def fake_operators(function):
    def listed(family=None, name=None):
        return [
            OperatorCase(
                "square",
                "losses",
                function,
                lambda x: x * x,
                lambda: [Sample("three", (torch.tensor([1.0, 2.0, 3.0]),))],
                differentiable=(0,),
                rtol={torch.float32: 1e-6},
            )
        ]

    return listed


def test_selftest_passes(run, monkeypatch):
    monkeypatch.setattr("robustcore.testing.operators", fake_operators(lambda x: x**2))
    code, out = run("selftest")
    assert code == 0
    assert "1 of 1 passed" in out
    code, out = run("selftest", "--json")
    report = json.loads(out)
    assert (code, report["passed"]) == (0, True)
    (result,) = report["results"]
    assert (result["operator"], result["dtype"]) == ("losses.square", "float32")
    assert (result["samples"], result["comparisons"]) == (1, 4)
    assert 0 <= result["worst_forward"] <= 1


@pytest.mark.parametrize("problem", ["value", "nan", "exception"])
def test_selftest_fails_with_exit_code_1_and_says_where(run, monkeypatch, problem):
    def wrong(x):
        if problem == "exception":
            raise RuntimeError("kernel exploded\nat length")
        return x * x * (float("nan") if problem == "nan" else 1.01)

    monkeypatch.setattr("robustcore.testing.operators", fake_operators(wrong))
    code, out = run("selftest")
    assert code == 1
    assert "FAIL" in out
    assert "0 of 1 passed" in out
    assert "three" in out
    code, out = run("selftest", "--json")
    report = json.loads(out)
    assert (code, report["passed"]) == (1, False)
    says = {"value": "worst at index", "nan": "NaN", "exception": "kernel exploded at length"}
    assert says[problem] in report["results"][0]["problems"][0]


def test_selftest_fails_where_there_is_nothing_to_test(run, monkeypatch):
    monkeypatch.setattr("robustcore.testing.operators", lambda family=None, name=None: [])
    code, out = run("selftest")
    assert code == 1
    assert "no operator" in out


@pytest.mark.parametrize("case", list(operators()), ids=lambda case: case.qualified_name)
def test_selftest_passes_for_every_operator(run, case):
    code, out = run("selftest", case.family, case.name, "--json")
    report = json.loads(out)
    assert [p for r in report["results"] for p in r["problems"]] == []
    assert (code, report["passed"]) == (0, True)
    assert len(report["results"]) == len(case.rtol)


@pytest.fixture
def tiny_benchmark(monkeypatch):
    from robustcore.cli.bench import load_benchmarks

    load_benchmarks()
    from fake_benchmark import Doubling

    from robustcore.benchmarks import runner

    monkeypatch.setattr("robustcore.benchmarks.select_benchmarks", lambda *_: [Doubling()])
    monkeypatch.setattr(runner, "probe_source", lambda device: torch.ones(1024))


def test_bench_writes_a_report(run, tiny_benchmark, tmp_path):
    code, out = run("bench", "--quick", "--json", str(tmp_path))
    assert code == 0
    assert "MISS" in out
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["quick"] is True
    code, out = run("bench", "--quick", "--json", "-")
    assert code == 0
    assert len(json.loads(out)["rows"]) == 4


def test_only_a_complete_run_in_a_checkout_writes_by_itself(
    run, tiny_benchmark, monkeypatch, tmp_path
):
    folder = tmp_path / "results"
    monkeypatch.setattr("robustcore.cli.bench._results_folder", lambda benchmarks: folder)
    assert run("bench", "--quick")[0] == 0
    monkeypatch.setattr("robustcore.benchmarks.runner.extra_bytes_cpu", lambda *_: {})
    assert run("bench", "fake")[0] == 0
    assert not folder.exists()
    assert run("bench")[0] == 0
    (path,) = folder.iterdir()
    assert json.loads(path.read_text())["quick"] is False


def test_the_results_folder_is_the_checkouts():
    from robustcore.cli.bench import _results_folder, load_benchmarks

    benchmarks = load_benchmarks()
    folder = _results_folder(benchmarks)
    assert folder is None or folder.parent.name == "benchmarks"
    benchmarks_of_a_wheel = type("module", (), {"__file__": "/somewhere/robustcore/x.py"})
    assert _results_folder(benchmarks_of_a_wheel) is None
