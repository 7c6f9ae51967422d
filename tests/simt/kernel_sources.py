"""Finds the `__global__` functions in CUDA sources, for the test that all of them are executed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".cuh", ".cu")
# Comments, raw strings, strings and characters (but not the ' between digits, as in 1'000).
_NO_CODE = re.compile(
    r"""//(?:\\\n|[^\n])*|/\*.*?\*/|R"([^()\\\s]{0,16})\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|"""
    r"""(?<![0-9a-zA-Z_])'(?:\\.|[^'\\\n])+'""",
    re.DOTALL,
)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
_TOKEN = re.compile(r"[A-Za-z_]\w*|::|[{}();<>,=\[\]]")
# What may stand, with an argument list, between __global__ and the kernel's name.
_ATTRIBUTES = {
    "__launch_bounds__",
    "__cluster_dims__",
    "__block_size__",
    "__maxnreg__",
    "__attribute__",
    "alignas",
}


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function.

    Attributes:
        name: its name with namespaces and without template arguments.
        path: the file.
        line: the line of the word `__global__`, from 1.
    """

    name: str
    path: Path
    line: int


class KernelSourceError(ValueError):
    """A source in which kernels cannot be found reliably."""


def _blank(match: re.Match[str]) -> str:
    """White space of the same lines, so that line numbers stay."""
    return " " + "\n" * match.group().count("\n")


def _skip_parentheses(tokens: list[re.Match[str]], index: int) -> int:
    """The index after the parenthesis that closes the one at `index`."""
    depth = 0
    while index < len(tokens):
        depth += {"(": 1, ")": -1}.get(tokens[index].group(), 0)
        index += 1
        if depth == 0:
            return index
    raise KernelSourceError("unbalanced parentheses")


def _kernel_name(tokens: list[re.Match[str]], index: int) -> tuple[str, int]:
    """The name of the function whose `__global__` stands before `index`, and where it ends."""
    parts: list[str] = []
    while index < len(tokens):
        token = tokens[index].group()
        if token in _ATTRIBUTES:
            index = _skip_parentheses(tokens, index + 1)
        elif token == "(":
            if not parts:
                raise KernelSourceError("no name before a parameter list")
            return "::".join(parts), index
        elif token == "<":  # an explicit specialisation or instantiation: name<arguments>(
            depth = 0
            while index < len(tokens):
                depth += {"<": 1, ">": -1}.get(tokens[index].group(), 0)
                index += 1
                if depth == 0:
                    break
        elif token == "::":
            index += 1
        elif token in "{};,=[":
            if token == "[":  # [[attribute]]
                while tokens[index].group() != "]":
                    index += 1
                index += 2
                continue
            raise KernelSourceError(f"unexpected '{token}' before a parameter list")
        else:
            # The last word before the parameter list is the name; qualified names keep their path.
            qualified = index > 0 and tokens[index - 1].group() == "::"
            parts = [*parts, token] if qualified else [token]
            index += 1
    raise KernelSourceError("no parameter list")


def kernels_in_text(text: str, path: Path) -> list[Kernel]:
    """Lists the kernels that a source declares or defines."""
    text = _NO_CODE.sub(_blank, text)
    for directive in _DIRECTIVE.finditer(text):
        if "__global__" in directive.group():
            line = text.count("\n", 0, directive.start()) + 1
            raise KernelSourceError(
                f"{path}:{line}: a macro must not contain __global__: the check that every kernel "
                "is executed could not see it"
            )
    text = _DIRECTIVE.sub(_blank, text)
    tokens = list(_TOKEN.finditer(text))
    scopes: list[list[str]] = []  # one per open brace; the names it adds
    kernels: list[Kernel] = []
    index = 0
    while index < len(tokens):
        token = tokens[index].group()
        if token == "namespace":
            names: list[str] = []
            index += 1
            while index < len(tokens) and tokens[index].group() not in ("{", ";", "="):
                if tokens[index].group() not in ("::", "inline", "[", "]"):
                    names.append(tokens[index].group())
                index += 1
            if index < len(tokens) and tokens[index].group() == "{":
                scopes.append(names)
        elif token in ("struct", "class"):
            # A kernel cannot be a member, but a friend declaration can name one: nothing to add.
            pass
        elif token == "{":
            scopes.append([])
        elif token == "}":
            if not scopes:
                line = text.count("\n", 0, tokens[index].start()) + 1
                raise KernelSourceError(f"{path}:{line}: unbalanced braces")
            scopes.pop()
        elif token == "__global__":
            line = text.count("\n", 0, tokens[index].start()) + 1
            try:
                name, index = _kernel_name(tokens, index + 1)
            except KernelSourceError as error:
                raise KernelSourceError(f"{path}:{line}: {error}") from None
            spaces = [part for scope in scopes for part in scope]
            kernels.append(Kernel("::".join([*spaces, name]), path, line))
            continue
        index += 1
    return kernels


def kernels_in_file(path: Path) -> list[Kernel]:
    """Lists the kernels in one file."""
    return kernels_in_text(path.read_text(), path)


def kernels_in_tree(folder: Path) -> list[Kernel]:
    """Lists the kernels in all .cuh and .cu files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES)
    return [kernel for path in paths for kernel in kernels_in_file(path)]


def not_executed(kernels: Iterable[Kernel], executed: Iterable[str]) -> list[str]:
    """Describes the kernels that are not among the executed names, one line each."""
    plain = {re.sub(r"(\{anonymous\}|\(anonymous namespace\))::", "", name) for name in executed}
    missing = {kernel.name: kernel for kernel in reversed(list(kernels))}
    return [
        f"{kernel.name} ({kernel.path}:{kernel.line})"
        for name, kernel in sorted(missing.items())
        if name not in plain
    ]
