"""Every kernel of the library is executed by the host executor, from Python and without it."""

import subprocess
from pathlib import Path

import pytest
import torch
from simt.harness import BUILD, REPOSITORY, Executor
from simt.kernel_sources import (
    KernelSourceError,
    kernels_in_file,
    kernels_in_text,
    kernels_in_tree,
    not_executed,
)

SELFTEST = REPOSITORY / "tests" / "simt" / "selftest"
HOW = "add it to tests/simt/<family>/<op>_kernel.cpp and test_<op>.py"


def names(source: str) -> list[str]:
    return [kernel.name for kernel in kernels_in_text(source, Path("source.cuh"))]


def test_standalone_checks_run_every_kernel(simt: Executor) -> None:
    done = subprocess.run([BUILD / "simt_check", "--kernels"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    executed = [line.split()[1] for line in lines if line.startswith("kernel ")]
    assert executed
    kernels = [*kernels_in_tree(REPOSITORY / "csrc"), *kernels_in_file(SELFTEST / "correct.cuh")]
    missing = not_executed(kernels, executed)
    assert not missing, f"kernels without RC_SIMT_CHECK ({HOW}):\n" + "\n".join(missing)


def test_python_tests_run_every_kernel(simt: Executor, left_out: list[str]) -> None:
    """Looks back on this session's tests; conftest.py moves it behind them."""
    if left_out:
        pytest.skip(f"only part of tests/simt was selected, without {', '.join(left_out)}")
    kernels = [*kernels_in_tree(REPOSITORY / "csrc"), *kernels_in_file(SELFTEST / "correct.cuh")]
    missing = not_executed(kernels, simt.executed)
    assert not missing, f"kernels that no test has run ({HOW}):\n" + "\n".join(missing)


def test_broken_kernels_count_as_not_executed(simt: Executor) -> None:
    """Names found in sources and names recorded by the executor agree, also where it matters."""
    simt.run("shared_reverse", values=torch.zeros(64), reversed=torch.empty(64))
    kernels = kernels_in_tree(SELFTEST)
    missing = [line.split()[0] for line in not_executed(kernels, simt.executed)]
    assert "robustcore::simt::selftest::trap_kernel" in missing
    assert "robustcore::simt::selftest::shared_reverse_kernel" not in missing


class TestFindingKernels:
    def test_plain(self) -> None:
        assert names("__global__ void fill(float* x, int n) { x[0] = n; }") == ["fill"]

    def test_namespaces(self) -> None:
        source = """
        namespace robustcore { namespace detail { struct A { int x; }; }
        namespace losses::inner { __global__ void first(int) {} }
        __global__ void second();
        namespace { __global__ void third() { if (true) { } } }
        inline namespace v1 { __global__ void fourth() {} }
        }
        namespace short_name = robustcore::losses;
        __global__ void fifth() {}
        """
        assert names(source) == [
            "robustcore::losses::inner::first",
            "robustcore::second",
            "robustcore::third",
            "robustcore::v1::fourth",
            "fifth",
        ]

    def test_templates_and_launch_bounds(self) -> None:
        source = """
        template <typename T, int N = (4 > 3 ? 1 : 2), template <class> class Policy>
        static __global__ void __launch_bounds__(Traits<T>::kThreads, max(1, 2))
            walk(const Params<T, N> params) {}
        template <class T> __global__ __launch_bounds__(256) void leading(T x) {}
        template <class T>
        __launch_bounds__(256)
        __global__ void before(T x) {}
        __attribute__((noinline)) __global__ void __maxnreg__(64) both() {}
        extern "C" __global__ void plain_c() {}
        template __global__ void walk<float, 4>(const Params<float, 4>);
        [[maybe_unused]] __global__ void [[gnu::cold]] attribute() {}
        """
        assert names(source) == [
            "walk",
            "leading",
            "before",
            "both",
            "plain_c",
            "walk",
            "attribute",
        ]

    def test_requires_no_code(self) -> None:
        source = """
        // __global__ void commented(int) {}
        /* __global__ void
           commented_too(int) {} */
        // continued \\
        __global__ void continued(int) {}
        const char* text = "__global__ void quoted(int) { \\" ";
        const char* raw = R"cuda(__global__ void raw(int) { " )cuda";
        char brace = '{'; int million = 1'000'000; char quote = '\\'';
        __global__ void real(int) {}
        """
        assert names(source) == ["real"]

    def test_directives_keep_lines(self) -> None:
        source = "#define OPEN {\n#if 1\n/* a\nb */\n__global__ void real() {}\n#endif\n"
        (kernel,) = kernels_in_text(source, Path("source.cuh"))
        assert (kernel.name, kernel.line) == ("real", 5)

    def test_macro_is_refused(self) -> None:
        with pytest.raises(KernelSourceError, match=r"source\.cuh:2: a macro must not contain"):
            names("\n#define KERNEL(name) \\\n  __global__ void name() {}\n")

    @pytest.mark.parametrize(
        "source", ["__global__ void;", "__global__", "} __global__ void x() {}", "__global__ (int)"]
    )
    def test_what_it_cannot_read_is_an_error(self, source: str) -> None:
        with pytest.raises(KernelSourceError, match=r"source\.cuh:1: "):
            names(source)

    def test_uncovered_kernel_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "losses").mkdir()
        (tmp_path / "losses" / "op.cuh").write_text(
            "namespace robustcore {\n"
            "template <class T> __global__ void __launch_bounds__(64) covered(T*) {}\n"
            "template <class T> __global__ void forgotten(T*) {}\n}\n"
        )
        (tmp_path / "losses" / "op_cuda.cu").write_text("__global__ void in_cu_file() {}\n")
        (tmp_path / "losses" / "op.h").write_text("// __global__ in a header for both\n")
        kernels = kernels_in_tree(tmp_path)
        assert len(kernels) == 3
        executed = ["robustcore::covered", "other::forgotten", "forgotten"]
        missing = not_executed(kernels, executed)
        assert [line.split()[0] for line in missing] == ["in_cu_file", "robustcore::forgotten"]
        assert missing[1].endswith("op.cuh:3)")
        everything = ["robustcore::covered", "robustcore::{anonymous}::forgotten", "in_cu_file"]
        assert not_executed(kernels, everything) == []
