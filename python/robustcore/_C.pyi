"""Compiled core; importing it registers the operators of ``torch.ops.robustcore``."""

from types import ModuleType
from typing import TypedDict

class BuildInformation(TypedDict):
    version: str
    compiled_with_torch: str
    compiler: str
    cuda: bool
    cuda_architectures: str

def build_information() -> BuildInformation: ...
def cpu_instruction_set() -> str: ...

testing: ModuleType
