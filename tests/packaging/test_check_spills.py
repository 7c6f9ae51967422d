"""tools/check_spills.py: reads the compiler's report, fails on spills, says why it cannot run."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_spills.py"

specification = importlib.util.spec_from_file_location("check_spills", TOOL)
assert specification is not None
assert specification.loader is not None
check_spills = importlib.util.module_from_spec(specification)
sys.modules["check_spills"] = check_spills
specification.loader.exec_module(check_spills)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")

REPORT = """\
ptxas info    : 23 bytes gmem, 40 bytes cmem[4]
ptxas info    : Compiling entry function '_Z5cleanPf' for 'sm_80'
ptxas info    : Function properties for _Z5cleanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 320 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 58.269 ms
ptxas info    : Compiling entry function '_Z5dirtyIfEvPT_' for 'sm_80'
ptxas info    : Function properties for _Z5dirtyIfEvPT_
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, 376 bytes cmem[0]
ptxas info    : Function properties for _Z6calleei
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


class TestReport:
    def test_numbers(self) -> None:
        clean, dirty, callee = check_spills.parse_report(REPORT, "a.cu", "sm_80")
        assert (clean.registers, clean.shared_bytes, clean.spills) == (30, 320, False)
        assert (dirty.registers, dirty.stack_bytes, dirty.shared_bytes) == (255, 16, 0)
        assert (dirty.spill_store_bytes, dirty.spill_load_bytes, dirty.spills) == (12, 8, True)
        assert (callee.is_kernel, callee.spills) == (False, True)

    @pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not installed")
    def test_names(self) -> None:
        usages = check_spills.parse_report(REPORT, "a.cu", "sm_80")
        check_spills.demangle(usages)
        assert [usage.function for usage in usages] == ["clean", "dirty<float>", "callee"]

    def test_names_keep_their_arguments(self) -> None:
        name = "void space::f<P<double>, 32, (space::Mode)1>(space::Problem<(space::Mode)1>)"
        expected = "space::f<P<double>, 32, (space::Mode)1>"
        assert check_spills.without_parameters(name) == expected
        assert check_spills.without_parameters("plain_c_name") == "plain_c_name"

    @pytest.mark.parametrize("lost", ["bytes stack frame", "Used 30 registers"])
    def test_incomplete(self, lost: str) -> None:
        """A changed format of the report must not pass for a kernel without spills."""
        text = "\n".join(line for line in REPORT.splitlines() if lost not in line)
        with pytest.raises(ValueError, match=r"a\.cu, sm_80: .* no registers for _Z5cleanPf"):
            check_spills.parse_report(text, "a.cu", "sm_80")


class TestCannotRun:
    def test_no_compiler(self) -> None:
        done = run("--nvcc", "no-such-compiler")
        assert done.returncode == 2
        assert done.stderr == "check_spills: no-such-compiler was not found\n"

    @needs_nvcc
    def test_no_file(self, tmp_path: Path) -> None:
        done = run(str(tmp_path / "none.cu"))
        assert done.returncode == 2
        assert done.stderr == f"check_spills: no such file: {tmp_path / 'none.cu'}\n"

    @pytest.mark.parametrize("arguments", [("--arch", "hopper"), ("--jobs", "0")])
    def test_bad_option(self, arguments: tuple[str, str]) -> None:
        done = run(*arguments)
        assert done.returncode == 2
        assert f"{arguments[0]} must be" in done.stderr


@needs_nvcc
class TestCompiler:
    def test_clean(self, tmp_path: Path) -> None:
        source = tmp_path / "clean_cuda.cu"
        source.write_text(
            '#include "common/reduce.cuh"\n'
            "template <class T> __global__ void total(const T* in, T* out) {\n"
            "  out[threadIdx.x] = robustcore::block_reduce<64>(in[threadIdx.x], "
            "robustcore::Sum{});\n}\n"
            "template __global__ void total<float>(const float*, float*);\n"
        )
        done = run(str(source), "--json", str(tmp_path / "report.json"))
        assert done.returncode == 0, done.stdout
        assert "2 kernels of 1 files, 0 spill, 0 failures" in done.stdout
        usages = json.loads((tmp_path / "report.json").read_text())["usages"]
        assert {usage["arch"] for usage in usages} == {"sm_80", "sm_90"}
        assert all(usage["registers"] > 0 for usage in usages)

    def test_spill(self, tmp_path: Path) -> None:
        source = tmp_path / "spill_cuda.cu"
        source.write_text(
            "__global__ void __maxnreg__(32) crowded(const float* in, float* out) {\n"
            "  float values[64];\n"
            "#pragma unroll\n"
            "  for (int i = 0; i < 64; ++i) values[i] = in[i * blockDim.x + threadIdx.x];\n"
            "  __syncthreads();\n"
            "#pragma unroll\n"
            "  for (int i = 0; i < 64; ++i) out[i * blockDim.x] = values[63 - i] * values[i];\n"
            "}\n"
        )
        done = run(str(source), "--arch", "sm_80")
        assert done.returncode == 1
        assert "<-- spills" in done.stdout
        assert "1 kernels of 1 files, 1 spill, 0 failures" in done.stdout

    def test_warning_is_an_error(self, tmp_path: Path) -> None:
        source = tmp_path / "warning_cuda.cu"
        source.write_text("__global__ void f(int* x) { int unused; *x = 1; }\n")
        done = run(str(source), "--arch", "90")
        assert done.returncode == 1
        assert "does not compile for sm_90" in done.stdout
        assert "unused" in done.stdout
