"""tools/gpu_check.sh on a machine that only pretends: it must tell what fails."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("bash") is None,
    reason="a bash script for Linux",
)


@pytest.fixture
def machine(tmp_path):
    """A copy of the script in an empty repository, and tools that do nothing."""
    (tmp_path / "repository" / "tools").mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "repository" / "tools")
    (tmp_path / "repository" / "pyproject.toml").write_text('version = "1.2.3"\n')
    tools = tmp_path / "bin"
    tools.mkdir()

    def tool(name, code):
        path = tools / name
        path.write_text(f"#!/bin/bash\n{code}\n")
        path.chmod(0o755)

    for name in ("nvcc", "cmake", "ninja"):
        tool(name, "exit 0")

    def python(*, missing="", capability="90", fails="nothing"):
        tool(
            "fake-python",
            f'case "$*" in\n'
            f'  *find_spec*) echo "{missing}" ;;\n'
            f'  "-") cat >/dev/null; echo "{capability}" ;;\n'
            f'  *"{fails}"*) echo "it broke"; exit 3 ;;\n'
            f'  *) echo "ran $*" ;;\n'
            f"esac",
        )

    def run(**environment):
        path = f"{tools}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", str(tmp_path / "repository" / "tools" / "gpu_check.sh")],
            env={"PATH": path, "PYTHON": "fake-python", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    python()
    run.tool, run.python, run.tools = tool, python, tools
    return run


def test_every_step_is_in_the_summary(machine):
    done = machine()
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout[done.stdout.index("=== summary") :]
    for name in ("build", "info", "selftest", "cuda tests", "benchmarks", "other tests"):
        assert f"ok       {name}" in summary
    assert "ran -m robustcore.cli bench --device cuda --json benchmarks/results/" in done.stdout
    if shutil.which("compute-sanitizer", path="/usr/bin:/bin") is None:
        assert "skipped  compute-sanitizer: not on the PATH" in summary


@pytest.mark.parametrize(
    ("fails", "name"),
    [("selftest", "selftest"), ("-m cuda", "cuda tests"), ("bench", "benchmarks")],
)
def test_a_failing_step_fails_the_check_and_the_others_still_run(machine, fails, name):
    machine.python(fails=fails)
    done = machine()
    assert done.returncode == 1
    assert f"FAILED   {name}: exit status 3; see build/gpu-check/" in done.stdout
    assert "ok       other tests" in done.stdout


def test_nothing_runs_after_a_failed_build(machine):
    machine.tool("cmake", "exit 1")
    done = machine()
    assert done.returncode == 1
    assert "FAILED   build: exit status 1" in done.stdout
    assert "selftest" not in done.stdout


def test_the_sanitizer_is_used_where_it_works(machine):
    machine.tool("compute-sanitizer", 'echo "sanitizing $*"')
    done = machine()
    assert done.returncode == 0
    assert "ok       memcheck" in done.stdout
    assert "ok       racecheck" in done.stdout
    machine.tool("compute-sanitizer", "exit 9")
    done = machine()
    assert done.returncode == 1
    assert "FAILED   memcheck: exit status 9" in done.stdout


def test_the_sanitizer_is_skipped_where_it_does_not_know_the_device(machine):
    machine.tool("compute-sanitizer", 'echo "Error: Device not supported"; exit 1')
    done = machine()
    assert done.returncode == 0
    assert "skipped  compute-sanitizer: it does not support this device" in done.stdout


def test_time_is_limited(machine):
    done = machine(GPU_CHECK_SECONDS="5")
    assert done.returncode == 1
    assert "FAILED   build: no time left" in done.stdout


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda machine: (machine.tools / "nvcc").unlink(), "nvcc is not on the PATH"),
        (lambda machine: machine.python(missing="pybind11 rich"), "lacks pybind11 rich"),
        (lambda machine: machine.python(capability=""), "torch finds no CUDA device"),
    ],
)
def test_what_the_machine_lacks_is_one_line(machine, prepare, says):
    if says.startswith("nvcc") and shutil.which("nvcc", path="/usr/bin:/bin"):
        pytest.skip("this machine has nvcc in /usr/bin")
    prepare(machine)
    done = machine()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gpu_check: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
