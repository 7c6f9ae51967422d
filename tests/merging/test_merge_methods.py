"""Every named method against formulas on whole models, and every cut into chunks against none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcore.merging.checkpoints import StateDictCheckpoint
from robustcore.merging.engine.execute import Execution, MergeReport, execute
from robustcore.merging.engine.plan import make_plan
from robustcore.merging.merge import StateDictSink, merge
from robustcore.merging.methods import METHODS, make_recipe
from robustcore.reference.merging import methods as reference

StateDict = dict[str, Tensor]


def models(tasks: int, dtype: torch.dtype = torch.float32, *, rounded: bool = False) -> Any:
    """A base and tasks; ``rounded`` makes magnitudes that occur often."""
    generator = torch.Generator().manual_seed(tasks)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shapes = {f"layers.{i}.weight": (40, 130) for i in range(3)}
    shapes |= {"embed": (77, 60), "norm": (9,), "empty": (0, 3), "one": (1,)}
    base = {key: normal(*shape).to(dtype) for key, shape in shapes.items()}
    finetuned = []
    for _ in range(tasks):
        change = {key: normal(*shape) / 8 for key, shape in shapes.items()}
        if rounded:
            base = {key: (value * 8).round() / 8 for key, value in base.items()}
            change = {key: (value * 32).round() / 32 for key, value in change.items()}
        finetuned.append({key: (base[key] + change[key]).to(dtype) for key in shapes})
    return base, finetuned


def task_vectors(base: StateDict, finetuned: list[StateDict], key: str) -> list[Tensor]:
    return [model[key] - base[key] for model in finetuned]


def flat_starts(base: StateDict) -> dict[str, int]:
    starts, start = {}, 0
    for key in sorted(base):
        starts[key] = start
        start += base[key].numel()
    return starts


def close(actual: StateDict, expected: StateDict) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key], rtol=1e-5, atol=1e-6, msg=key)


def from_flat(base: StateDict, vector: Tensor) -> StateDict:
    merged, start = {}, 0
    for key in sorted(base):
        part = vector[start : start + base[key].numel()]
        merged[key] = base[key] + part.view(base[key].shape)
        start += base[key].numel()
    return merged


@pytest.mark.parametrize("weights", [1.0, (0.5, -1.0, 2.0)])
def test_task_arithmetic(weights: Any) -> None:
    base, finetuned = models(3)
    actual = merge(base, finetuned, method="task_arithmetic", scale=0.4, weights=weights)
    each = weights if isinstance(weights, tuple) else [weights] * 3
    expected = reference.per_tensor(
        base, finetuned, lambda _, v: 0.4 * sum(w * x for w, x in zip(each, v, strict=True))
    )
    close(actual, expected)


def test_linear_is_the_mean() -> None:
    base, finetuned = models(4)
    expected = {key: torch.stack([model[key] for model in finetuned]).mean(0) for key in base}
    close(merge(base, finetuned, method="linear"), expected)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("how", ["mean", "sum", "max"])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.7, 1.0])
def test_ties_global(density: float, how: str, rounded: bool) -> None:
    base, finetuned = models(4, rounded=rounded)
    vectors = torch.stack([reference.flat(model) - reference.flat(base) for model in finetuned])
    merged = reference.ties_global(vectors, density, how)
    actual = merge(base, finetuned, method="ties", density=density, merge=how, scale=0.5)
    close(actual, from_flat(base, 0.5 * merged))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("mode", ["per_tensor", "lora"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_ties_of_tensors(density: float, mode: str, rounded: bool) -> None:
    base, finetuned = models(3, rounded=rounded)
    weights = (1.0, 0.5, 2.0)
    formula = reference.ties_per_tensor if mode == "per_tensor" else reference.ties_lora
    expected = reference.per_tensor(base, finetuned, lambda _, v: formula(v, density, weights))
    actual = merge(base, finetuned, method="ties", mode=mode, density=density, weights=weights)
    close(actual, expected)


@pytest.mark.parametrize("rescale", ["none", "density", "l1"])
def test_dare(rescale: str) -> None:
    base, finetuned = models(3)
    starts = flat_starts(base)
    expected = {}
    for key in base:
        total = torch.zeros_like(base[key])
        for task, vector in enumerate(task_vectors(base, finetuned, key)):
            kept = reference.dare(vector, 0.3, 7, task, starts[key])
            norm = float(kept.abs().sum())
            factor = {"none": 1.0, "density": 1 / 0.3}.get(rescale)
            if factor is None:
                factor = float(vector.abs().sum()) / norm if norm else 1.0
            total += factor * kept
        expected[key] = base[key] + total
    close(merge(base, finetuned, method="dare", density=0.3, seed=7, rescale=rescale), expected)


def test_dare_keeps_its_share() -> None:
    base, finetuned = {"w": torch.zeros(100_000)}, [{"w": torch.ones(100_000)}]
    kept = merge(base, finetuned, method="dare", density=0.25, rescale="none")["w"]
    deviation = math.sqrt(100_000 * 0.25 * 0.75)
    assert abs(float(kept.sum()) - 25_000) < 5 * deviation
    other = merge(base, finetuned, method="dare", density=0.25, rescale="none", seed=1)["w"]
    assert abs(float((kept * other).sum()) - 6_250) < 5 * math.sqrt(100_000 / 16)


@pytest.mark.parametrize("elect", [False, True])
def test_della(elect: bool) -> None:
    base, finetuned = models(2)
    starts = flat_starts(base)
    expected = {}
    for key in base:
        kept = [
            reference.della(vector, 0.5, 0.2, 3, task, starts[key])
            for task, vector in enumerate(task_vectors(base, finetuned, key))
        ]
        total = sum(kept)
        if elect:
            total = reference.ties_per_tensor(kept, 1.0, (1.0, 1.0))
        expected[key] = base[key] + total
    options = {"density": 0.5, "epsilon": 0.2, "seed": 3, "elect": elect}
    close(merge(base, finetuned, method="della", **options), expected)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.2), (0.0, 0.1), (1.0, 0.5)])
def test_breadcrumbs(density: float, gamma: float, rounded: bool) -> None:
    base, finetuned = models(3, rounded=rounded)
    expected = reference.per_tensor(
        base, finetuned, lambda _, v: sum(reference.breadcrumbs(x, density, gamma) for x in v)
    )
    close(merge(base, finetuned, method="breadcrumbs", density=density, gamma=gamma), expected)


def test_magnitude_pruning() -> None:
    base, finetuned = models(2, rounded=True)
    expected = reference.per_tensor(
        base, finetuned, lambda _, v: sum(reference.top(x, int(0.3 * x.numel())) for x in v)
    )
    close(merge(base, finetuned, method="magnitude", density=0.3), expected)


@pytest.mark.parametrize("method", ["consensus", "consensus_ties"])
def test_consensus(method: str) -> None:
    base, finetuned = models(4)
    start, rows = reference.flat(base), [reference.flat(model) for model in finetuned]
    vectors = torch.stack([row - start for row in rows])
    merged = vectors[0]
    for vector in vectors[1:]:
        merged = merged + vector
    if method == "consensus_ties":
        merged = reference.ties_global(vectors, 0.2, "sum")
    lambdas = (0.2, 0.4, 0.6, 0.3)
    kept = reference.consensus_vector(start, rows, merged, lambdas, 2)
    actual = merge(base, finetuned, method=method, lambdas=lambdas, k=2, scale=0.7)
    close(actual, from_flat(base, 0.7 * kept))


@pytest.mark.parametrize("method", ["lines", "ties"])
def test_scaling_by_depth(method: str) -> None:
    base, finetuned = models(3)
    start = reference.flat(base)
    vectors = torch.stack([reference.flat(model) - start for model in finetuned])
    merged = vectors.sum(0) if method == "lines" else reference.ties_global(vectors, 0.2)
    alpha = reference.lines_alpha(list(vectors), merged)
    options: dict[str, Any] = {"beta": 0.8}
    if method == "ties":
        options = {"lines": options}
    actual = merge(base, finetuned, method=method, **options)
    plain = from_flat(base, merged)
    for key in base:
        block = int(key.split(".")[1]) if key.startswith("layers") else None
        scale = alpha + (0.8 * block / 2 if block is not None else 0)
        expected = base[key] + scale * (plain[key] - base[key])
        torch.testing.assert_close(actual[key], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(t: float) -> None:
    base, _ = models(1)
    other = {key: torch.randn_like(value) for key, value in base.items()}
    other["norm"] = base["norm"] * 2  # parallel
    expected = {key: reference.slerp(base[key], other[key], t) for key in base if base[key].numel()}
    actual = merge(base, [other], method="slerp", t=t)
    del actual["empty"]
    close(actual, expected)


def test_robust_weight_signature_is_orthogonal_to_the_clean_change() -> None:
    base, finetuned = models(2)
    actual = merge(base, finetuned, method="rws")
    for key in ("embed", "layers.1.weight", "norm"):
        _, clean = task_vectors(base, finetuned, key)
        product = float(((actual[key] - base[key]).double() * clean.double()).sum())
        assert abs(product) < 1e-5 * float(clean.norm()) ** 2


def test_rift_is_a_line() -> None:
    base, finetuned = models(1)
    expected = {key: 0.75 * base[key] + 0.25 * finetuned[0][key] for key in base}
    close(merge(base, finetuned, method="rift", alpha=0.25), expected)


# --- the same bits for any cut


class Copied(StateDictCheckpoint):
    """A state dict that is read like a file: into the memory given, and nothing else."""

    is_resident = False

    def read(self, key: str, start: int, stop: int, into: Tensor) -> Tensor:
        values = self._values[key][start:stop]
        assert into.shape == values.shape
        assert into.dtype == values.dtype
        return into.copy_(values)


TASKS = {"slerp": 1, "rift": 1, "rws": 2}
VARIANTS: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in METHODS]
VARIANTS += [
    ("ties", {"mode": "per_tensor", "density": 0.5}),
    ("ties", {"mode": "lora"}),
    ("ties", {"lines": True}),
    ("dare", {"rescale": "l1"}),
    ("magnitude", {"rescale": "l1"}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
]


def run(method: str, options: dict[str, Any], kind: Any, how: Execution) -> tuple[Any, MergeReport]:
    base, finetuned = models(TASKS.get(method, 3), torch.bfloat16, rounded=True)
    base["counter"] = torch.tensor(5)
    tasks = {
        str(i): kind(str(i), model | {"counter": torch.tensor(i)})
        for i, model in enumerate(finetuned)
    }
    plan = make_plan("merge", kind("base", base), tasks)
    sink = StateDictSink(plan, torch.device("cpu"))
    report = execute(
        "merge", plan, make_recipe("merge", method, len(tasks), options), sink, how=how
    )
    return sink.model(), report


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=lambda value: str(value))
def test_chunks_do_not_change_a_bit(method: str, options: dict[str, Any]) -> None:
    whole, _ = run(method, options, StateDictCheckpoint, Execution())
    for parameters in (4096, 8192):
        cut, _ = run(method, options, Copied, Execution(chunk_parameters=parameters))
        assert cut.keys() == whole.keys()
        assert all(torch.equal(cut[key], whole[key]) for key in whole)


@pytest.mark.parametrize("method", ["ties", "dare", "breadcrumbs"])
def test_threads_do_not_change_a_bit(method: str) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = run(method, {}, StateDictCheckpoint, Execution())
        torch.set_num_threads(2)
        two, _ = run(method, {}, StateDictCheckpoint, Execution())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_ties_reads_the_weights_three_times() -> None:
    base, finetuned = models(3)
    tasks = {str(i): StateDictCheckpoint(str(i), model) for i, model in enumerate(finetuned)}
    plan = make_plan("merge", StateDictCheckpoint("base", base), tasks)
    report = execute(
        "merge", plan, make_recipe("merge", "ties", 3, {}), StateDictSink(plan, torch.device("cpu"))
    )
    assert report.walks == 3
    assert report.cancelled == 0


@pytest.mark.parametrize("method", ["task_arithmetic", "consensus"])
def test_sums_are_scaled_once(method: str) -> None:
    base, finetuned = models(3)
    scaled = merge(base, finetuned, method=method, lines={"alpha": 0.4, "beta": 0.0})
    expected = merge(base, finetuned, method=method, scale=0.4)
    close(scaled, expected)
    close(merge(base, finetuned, method=method), merge(base, finetuned, method=method, scale=0.3))
