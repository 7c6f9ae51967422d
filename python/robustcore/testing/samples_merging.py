"""Sample inputs of the merging family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .merge_problems import random_problem
from .sample import OperatorCase, Sample

__all__ = [
    "combine_task_vectors_samples",
    "operator_cases",
    "operator_inputs",
    "random_models",
    "tall_masks_samples",
]

# All results are bits, counts and values picked or added once: they must agree exactly.
_EXACT = dict.fromkeys((torch.float32, torch.float64, torch.bfloat16, torch.float16), 0.0)
# Sums of up to 17 terms of size one, rounded to the dtype of the inputs.
_ROUNDED = {
    torch.float32: 2e-6,
    torch.float64: 1e-14,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}


def operator_cases() -> list[OperatorCase]:
    """The merging operators with their references."""
    from ..merging import combine_task_vectors, tall_masks
    from ..reference import merging as reference

    return [
        OperatorCase(
            name="tall_masks",
            family="merging",
            function=tall_masks,
            reference=reference.tall_masks,
            samples=tall_masks_samples,
            outputs=lambda masks: {"codes": masks.codes, "densities": masks.densities},
            rtol=_EXACT,
            exact=True,
        ),
        OperatorCase(
            name="packed_masks",
            family="merging",
            function=_mask_facts,
            reference=_under_reference(_mask_facts),
            samples=tall_masks_samples,
            rtol=_EXACT,
            exact=True,
        ),
        OperatorCase(
            name="mask_apply",
            family="merging",
            function=_reconstructions,
            reference=_under_reference(_reconstructions),
            samples=lambda: (s for s in tall_masks_samples() if "merged" in s.kwargs),
            differentiable=(0, "merged"),
            rtol=_EXACT,
            exact=True,
        ),
        OperatorCase(
            name="task_switcher",
            family="merging",
            function=_switched,
            reference=_under_reference(_switched),
            samples=lambda: (s for s in tall_masks_samples() if "merged" in s.kwargs),
            rtol=_EXACT,
            exact=True,
        ),
        OperatorCase(
            name="combine_task_vectors",
            family="merging",
            function=combine_task_vectors,
            reference=reference.combine_task_vectors,
            samples=combine_task_vectors_samples,
            differentiable=(0, 1, 2),
            rtol=_ROUNDED,
            atol=_ROUNDED,
        ),
    ]


def tall_masks_samples() -> Iterator[Sample]:
    """Sizes around words and blocks, several tensors, given τM, options, and extreme values."""
    for sizes in ((0,), (1,), (63,), (64,), (65,), (257,), (2049,)):
        yield _models(f"{sizes[0]} parameters", sizes, 3)
    yield _models("tensors that share words", (1, 40, 0, 300, 7), 4)
    for tasks in (1, 2, 8, 17):
        yield _models(f"{tasks} tasks", (100, 29), tasks)
    for comparison in ("strict", "paper"):
        yield _models(f"frozen, {comparison}", (130, 5), 3, frozen=True, comparison=comparison)
    for count in (1, 3, 7, 8, 15, 16, 63):
        lambdas = tuple(0.05 * n for n in range(count, 0, -1))
        yield _models(f"{count} lambdas", (200,), 3, lambdas=lambdas)
    yield _models("merged given", (70, 200), 3, given=True)
    yield _models("merged given, tensors of one and of no element", (1, 0, 90), 2, given=True)
    yield _with_extreme_values()
    yield _strided()


def combine_task_vectors_samples() -> Iterator[Sample]:
    """Sizes around blocks, numbers of tasks, every shape of coefficients, strided tensors."""
    for sizes in ((0,), (1,), (4095, 1), (4097, 300, 0), (2049,)):
        yield _vectors(f"{sizes[0]} parameters in the first tensor", sizes, 2)
    for tasks in (1, 3, 17):
        yield _vectors(f"{tasks} tasks", (70, 130), tasks)
    yield _vectors("one coefficient per task", (70, 130, 5), 3, shape=(3,))
    yield _vectors("shared blocks", (70, 130, 5), 3, shape=(3, 2), blocks=(1, 0, 1))
    yield _vectors("a block without tensors", (70, 5), 2, shape=(2, 4), blocks=(3, 1))
    base, changes = random_models((144, 35), 2, seed=6)
    yield Sample(
        "transposed tensors",
        (
            {key: _across(tensor) for key, tensor in base.items()},
            [{key: _across(t) for key, t in model.items()} for model in changes.values()],
            torch.tensor([[0.5, -1.0], [2.0, 0.25]]),
        ),
    )


def _vectors(
    name: str,
    sizes: tuple[int, ...],
    tasks: int,
    *,
    shape: tuple[int, ...] | None = None,
    **options: Any,
) -> Sample:
    base, finetuned = random_models(sizes, tasks, seed=len(name))
    vectors = {task: {key: t - base[key] for key, t in m.items()} for task, m in finetuned.items()}
    generator = torch.Generator().manual_seed(2)
    coefficients = torch.randn(shape or (tasks, len(sizes)), generator=generator)
    return Sample(name, (base, vectors, coefficients), options)


def random_models(
    sizes: tuple[int, ...], tasks: int, *, seed: int = 0, frozen: bool = False
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base and its fine-tuned models: state dicts with one tensor per size."""
    generator = torch.Generator().manual_seed(seed)

    def noise(size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    base = {f"layer{i}": noise(size) for i, size in enumerate(sizes)}
    finetuned = {}
    for task in range(tasks):
        model = {}
        for key, start in base.items():
            change = 0.1 * noise(start.numel())
            if frozen:
                change[::2] = 0.0
            model[key] = start + change
        finetuned[f"task {task}"] = model
    return base, finetuned


def _models(
    name: str,
    sizes: tuple[int, ...],
    tasks: int,
    *,
    frozen: bool = False,
    given: bool = False,
    **options: Any,
) -> Sample:
    base, finetuned = random_models(sizes, tasks, seed=len(name), frozen=frozen)
    if given:
        generator = torch.Generator().manual_seed(1)
        options["merged"] = {
            key: 0.2 * torch.randn(start.shape, generator=generator) for key, start in base.items()
        }
    return Sample(name, (base, finetuned), options)


def _with_extreme_values() -> Sample:
    """Every pair of these as weights of base and task: ties, infinities, NaN, subnormals."""
    values = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 1.5, 1e-45, 1e-38, 6e4, 3e38, torch.inf, -torch.inf, torch.nan]
    )
    base = values.repeat_interleave(len(values))
    first = values.repeat(len(values))
    return Sample("extreme values", (base, [first, base.clone(), first.roll(5)]))


def _strided() -> Sample:
    base, finetuned = random_models((144, 35), 2, seed=5)
    return Sample(
        "transposed tensors",
        (
            {key: _across(tensor) for key, tensor in base.items()},
            [{key: _across(t) for key, t in model.items()} for model in finetuned.values()],
        ),
    )


def _across(tensor: Tensor) -> Tensor:
    return tensor.view(-1, 12 if tensor.numel() == 144 else 7).t()


def _mask_facts(base: Any, finetuned: Any, **options: Any) -> dict[str, Tensor]:
    """Everything that packed masks can be asked."""
    from ..merging import tall_masks

    codes = tall_masks(base, finetuned, **options)
    masks = codes.select(codes.lambdas[len(codes.lambdas) // 2])
    least = (len(masks.tasks) + 1) // 2
    return {
        "words": masks.words,
        "unpacked": masks.unpack(0),
        "counts": masks.counts(),
        "histogram": masks.histogram(),
        "overlap": masks.overlap(),
        "consensus": masks.consensus(least).words,
    }


def _reconstructions(base: Any, finetuned: Any, *, merged: Any, **options: Any) -> Any:
    """Every task's reconstruction from one multi-task vector."""
    from ..merging import tall_masks

    masks = tall_masks(base, finetuned, merged=merged, **options).select(0.4)
    return [masks.apply(task, base, merged) for task in masks.tasks]


def _switched(base: Any, finetuned: Any, *, merged: Any, **options: Any) -> Any:
    """Weights after switching from the base to every task and back."""
    from ..merging import TaskSwitcher, tall_masks

    masks = tall_masks(base, finetuned, merged=merged, **options).select(0.4)
    weights = {key: tensor.clone() for key, tensor in base.items()}
    switcher = TaskSwitcher(weights, masks, merged)
    results = []
    for task in (*masks.tasks, masks.tasks[0], None):
        switcher.to(task)
        results.append({key: tensor.clone() for key, tensor in weights.items()})
    return results


def _under_reference(function: Callable[..., Any]) -> Callable[..., Any]:
    def reference(*args: Any, **kwargs: Any) -> Any:
        from .._reference import use_reference

        with use_reference():
            return function(*args, **kwargs)

    return reference


def operator_inputs() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Arguments of the raw operators of ``torch.ops.robustcore``, by name."""
    base, finetuned = random_models((40, 1, 130), 3)
    rows = [tensor for model in finetuned.values() for tensor in model.values()]
    start = list(base.values())
    vector = [tensor.clone() for tensor in rows[:3]]
    for merged in ([], vector):
        yield "tall_masks", (start, rows, merged, 3, [0.2, 0.4, 0.6], True)
    # Every other column of wider storage, and a transposed matrix.
    wide = [torch.stack([tensor, tensor], 1)[:, 0] for tensor in start]
    yield "tall_masks", (wide, rows, [], 3, [0.5], False)
    generator = torch.Generator().manual_seed(0)
    # The parameters are 171: bits past them are 0.
    masks = torch.randint(0, 2**40, (3, 3), generator=generator)
    codes = torch.randint(0, 2**40, (3, 2, 3), generator=generator)
    for rows_of_words in (masks, masks.t().contiguous().t()):
        yield "mask_counts", (rows_of_words, 171)
        yield "mask_histogram", (rows_of_words, 171)
        yield "mask_overlap", (rows_of_words,)
        yield "mask_consensus", (rows_of_words, 2)
    yield "mask_select", (codes, [1, 2, 3])
    yield "mask_unpack", (masks[1], 171)
    yield "mask_apply", (start, vector, masks[0])
    yield "mask_apply", (wide, vector, masks[0])
    yield "mask_multiply", (start, masks[0])
    yield "mask_apply_", ([tensor.clone() for tensor in start], vector, masks[0])
    yield (
        "mask_switch_",
        ([tensor.clone() for tensor in start], start, vector, masks[0], masks[1]),
    )
    coefficients = torch.randn((3, 2), generator=generator, dtype=torch.float64)
    for model in (start, wide):
        for add_base in (True, False):
            yield "combine_task_vectors", (model, rows, coefficients, [1, 0, 1], add_base)
        yield "task_vector_products", (model, rows, 3, [1, 0, 1], 2)
    yield from _weight_operator_inputs()


def _weight_operator_inputs() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Of the operators that merge weights: pieces of one and of several dtypes."""
    for dtypes, windows in (
        ((torch.float32,), "none"),
        ((torch.bfloat16, torch.float64, torch.float16), "ties"),
    ):
        problem = random_problem(
            (4100, 0, 70), 2, dtypes=dtypes, windows=windows, drop=True, election=1
        )
        lists = (problem.base, problem.finetuned)
        out = [torch.empty_like(tensor) for tensor in problem.base]
        yield "merge_weights_", (out, *problem.arguments())
        counts = torch.zeros(2, 1 << 16, dtype=torch.int64)
        yield "magnitude_histogram_", (counts, *lists, problem.vectors, [])
        counts = torch.zeros(2, 1 << 15, dtype=torch.int64)
        yield "magnitude_histogram_", (counts, *lists, problem.vectors, [0x7C00, 0x7D00])
        if problem.windows is not None:
            yield "magnitude_ties", (*lists, problem.vectors, problem.windows)
        yield "compare_weights", (problem.base, problem.finetuned[:3])
        yield "compare_weights", (problem.base, [])
