"""The CUDA kernels that combine task vectors, in the host executor: the bits of the CPU kernels."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor
from torch import Tensor

from robustcore.reference import merging as reference

OPS = torch.ops.robustcore
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]
# Tails of the 2048 and 4096 parameters of a block.
SIZES = [[1], [0, 300], [4095, 2049, 5], [8193]]

Model = tuple[list[Tensor], list[Tensor], Tensor, dict[str, object]]


def given(
    sizes: list[int],
    dtypes: list[tuple[torch.dtype, torch.dtype]],
    tasks: int,
    columns: list[int],
    name: str,
) -> Model:
    generator = torch.Generator().manual_seed(sum(sizes))

    def noise(size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    pairs = list(zip(sizes, dtypes, strict=True))
    model = [noise(size, dtype) for size, (dtype, _) in pairs]
    vectors = [noise(size, dtype) for _ in range(tasks) for size, (_, dtype) in pairs]
    count = max(columns) + 1
    coefficients = torch.randn((tasks, count), generator=generator, dtype=torch.float64)
    arguments: dict[str, object] = {"tensors": len(sizes), "tasks": tasks, "columns": count}
    for i, column in enumerate(columns):
        arguments |= {f"{name}{i}": model[i], f"column{i}": column}
        arguments |= {f"vector{t}_{i}": vectors[t * len(sizes) + i] for t in range(tasks)}
    return model, vectors, coefficients, arguments


def run_combine(
    simt: Executor,
    sizes: list[int],
    dtypes: list[tuple[torch.dtype, torch.dtype]],
    tasks: int,
    columns: list[int],
    add_base: bool = True,
) -> None:
    base, vectors, coefficients, arguments = given(sizes, dtypes, tasks, columns, "base")
    results = [torch.empty_like(tensor) for tensor in base]
    outputs = {f"result{i}": tensor for i, tensor in enumerate(results)}
    simt.run(
        "combine_task_vectors",
        **arguments,
        **outputs,
        coefficients=coefficients,
        add_base=add_base,
    )
    expected = reference.combined_weights(base, vectors, coefficients, columns, add_base)
    assert all(map(torch.equal, results, expected))


def run_products(
    simt: Executor,
    sizes: list[int],
    dtypes: list[tuple[torch.dtype, torch.dtype]],
    tasks: int,
    columns: list[int],
) -> None:
    grads, vectors, coefficients, arguments = given(sizes, dtypes, tasks, columns, "grad")
    products = torch.empty_like(coefficients)
    simt.run("task_vector_products", **arguments, products=products)
    count = coefficients.shape[1]
    same_order = OPS.task_vector_products(grads, vectors, tasks, columns, count)
    assert torch.equal(products, same_order)
    exact = reference.task_vector_products(grads, vectors, tasks, columns, count)
    torch.testing.assert_close(products, exact, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combine(simt: Executor, sizes: list[int], dtype: tuple[torch.dtype, torch.dtype]) -> None:
    run_combine(simt, sizes, [dtype] * len(sizes), 3, list(range(len(sizes))))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(simt: Executor, sizes: list[int], dtype: tuple[torch.dtype, torch.dtype]) -> None:
    run_products(simt, sizes, [dtype] * len(sizes), 3, list(range(len(sizes))))


def test_without_the_base(simt: Executor) -> None:
    run_combine(simt, [70, 5], [DTYPES[0]] * 2, 2, [0, 1], add_base=False)


def test_shared_and_empty_blocks_in_several_runs(simt: Executor) -> None:
    sizes, dtypes = [70, 30, 40, 5], [DTYPES[0], DTYPES[3], DTYPES[4], DTYPES[0]]
    run_combine(simt, sizes, dtypes, 2, [3, 0, 3, 3])
    run_products(simt, sizes, dtypes, 2, [3, 0, 3, 3])


def test_more_tensors_than_one_launch_takes(simt: Executor) -> None:
    sizes, dtypes = [7] * 35, [DTYPES[0]] * 35
    columns = [i % 4 for i in range(35)]
    run_combine(simt, sizes, dtypes, 2, columns)
    run_products(simt, sizes, dtypes, 2, columns)


def test_tasks_that_leave_room_for_one_tensor(simt: Executor) -> None:
    run_combine(simt, [9, 5], [DTYPES[0]] * 2, 200, [0, 1])
    run_products(simt, [9, 5], [DTYPES[0]] * 2, 200, [0, 0])


def test_more_partial_sums_than_threads(simt: Executor) -> None:
    run_products(simt, [257 * 4096 + 3], [DTYPES[2]], 1, [0])


def test_nothing_but_empty_tensors(simt: Executor) -> None:
    run_products(simt, [0, 0], [DTYPES[0]] * 2, 2, [0, 1])
