# The headers and the CPU library of torch, without find_package(Torch): that one pulls in CUDA, fails
# where CUDA is missing, and overrides the CUDA architectures. Everything here uses the stable ABI only.
#
# An isolated build (`pip install .`) cannot import torch, yet the interpreter still knows where the
# surrounding environment keeps its packages, and headers and a library to link are all that is needed.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c [=[
import pathlib, re, sysconfig
try:
    import torch
    root = pathlib.Path(torch.__file__).parent
except ImportError:
    places = [pathlib.Path(sysconfig.get_paths()[name]) / "torch" for name in ("platlib", "purelib")]
    root = next((place for place in places if (place / "version.py").exists()), None)
if root is not None:
    text = (root / "version.py").read_text()
    version = re.search(r"__version__ = '([^']+)'", text).group(1)
    cuda = re.search(r"^cuda\b[^=]*= (.+)$", text, re.M).group(1).strip("'")
    print(root, version, cuda, sep=";", end="")
]=]
  OUTPUT_VARIABLE torch_facts)
if(NOT torch_facts)
  message(FATAL_ERROR "robustcore: torch >= 2.11 was not found for ${Python_EXECUTABLE}; "
    "install it in this environment, then run pip install . there (where the build runs in an "
    "environment of its own, install scikit-build-core and pybind11 too and add --no-build-isolation)")
endif()
list(GET torch_facts 0 torch_root)
list(GET torch_facts 1 torch_version)
list(GET torch_facts 2 torch_cuda_version)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" torch_release "${torch_version}")
if(torch_release VERSION_LESS 2.11)
  message(FATAL_ERROR "robustcore: torch >= 2.11 is needed, found ${torch_version} in ${torch_root}")
endif()

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${torch_root}/include")
target_link_libraries(torch_stable INTERFACE "${torch_root}/lib/libtorch_cpu.so")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
message(STATUS "robustcore: torch ${torch_version} (CUDA: ${torch_cuda_version}) in ${torch_root}")
