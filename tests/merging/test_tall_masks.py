"""tall_masks: bit for bit against the reference and against the authors' order of operations."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustcore import merging, reference
from robustcore.merging import multi_task_vector, tall_masks, task_vector
from robustcore.testing import OperatorCase, Sample, check_sample
from robustcore.testing.samples_merging import operator_cases, random_models, tall_masks_samples

SAMPLES = {sample.name: sample for sample in tall_masks_samples()}
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize(
    ("case", "sample"),
    [
        pytest.param(case, sample, id=f"{case.name}: {sample.name}")
        for case in operator_cases()
        for sample in case.samples()
    ],
)
def test_samples_equal_the_reference(
    case: OperatorCase, sample: Sample, dtype: torch.dtype
) -> None:
    findings = check_sample(case, sample, "cpu", dtype)
    assert findings
    wrong = [(f.quantity, f.comparison) for f in findings if not f.comparison.passed]
    assert not wrong


@given(
    st.lists(st.sampled_from(strategies.EDGE_SIZES), min_size=1, max_size=6),
    st.integers(1, 9),
    st.lists(strategies.floating_dtypes, min_size=6, max_size=6),
    st.lists(st.floats(0.01, 3.0), min_size=1, max_size=17, unique=True),
    st.sampled_from(["strict", "paper"]),
    st.integers(0, 1000),
)
def test_random_models_equal_the_reference(
    sizes: list[int],
    tasks: int,
    dtypes: list[torch.dtype],
    lambdas: list[float],
    comparison: str,
    seed: int,
) -> None:
    base, finetuned = random_models(tuple(sizes), tasks, seed=seed, frozen=True)
    by_key = dict(zip(base, dtypes, strict=False))
    base = {key: tensor.to(by_key[key]) for key, tensor in base.items()}
    finetuned = {
        name: {key: tensor.to(by_key[key]) for key, tensor in model.items()}
        for name, model in finetuned.items()
    }
    actual = tall_masks(base, finetuned, lambdas=lambdas, comparison=comparison)
    expected = reference.merging.tall_masks(base, finetuned, lambdas=lambdas, comparison=comparison)
    assert torch.equal(actual.codes, expected.codes)
    assert torch.equal(actual.densities, expected.densities)


@given(st.data(), st.integers(1, 5), strategies.floating_dtypes)
def test_strides(data: st.DataObject, tasks: int, dtype: torch.dtype) -> None:
    shape = data.draw(st.tuples(strategies.edge_sizes, st.integers(1, 5)))
    tensors = [torch.randn(shape).to(dtype) for _ in range(tasks + 1)]
    expected = reference.merging.tall_masks(tensors[0], tensors[1:])
    views = [data.draw(strategies.strided(tensor)) for tensor in tensors]
    assert torch.equal(tall_masks(views[0], views[1:]).codes, expected.codes)


@pytest.mark.parametrize("comparison", ["strict", "paper"])
def test_bits_are_those_of_the_published_procedure(comparison: str) -> None:
    """Each λ by itself, on the flattened vectors, as the authors' code runs it."""
    base, finetuned = random_models((1000, 77, 3000), 8, frozen=True)
    flat = torch.cat(list(base.values()))
    rows = [torch.cat(list(model.values())) for model in finetuned.values()]
    vector = rows[0] - flat
    for row in rows[1:]:
        vector = vector + (row - flat)
    masks = tall_masks(base, finetuned, lambdas=LAMBDAS, comparison=comparison)
    for lambda_ in LAMBDAS:
        selected = masks.select(lambda_)
        for task, row in zip(finetuned, rows, strict=True):
            own = (flat - row).abs()
            others = (flat + vector - row).abs() * lambda_
            expected = own > others if comparison == "strict" else own >= others
            assert torch.equal(selected.unpack(task), expected)


def test_sixteen_bit_weights_are_converted_before_subtracting() -> None:
    base = torch.randn(5000).bfloat16()
    finetuned = [(base + 0.05 * torch.randn(5000)).bfloat16() for _ in range(3)]
    wide = tall_masks(base.float(), [row.float() for row in finetuned])
    assert torch.equal(tall_masks(base, finetuned).codes, wide.codes)
    rounded = tall_masks(torch.zeros(5000).bfloat16(), [row - base for row in finetuned])
    assert not torch.equal(rounded.codes, wide.codes)


def test_frozen_parameters() -> None:
    base = torch.randn(100)
    frozen = [base.clone(), base.clone()]
    assert tall_masks(base, frozen).densities.eq(0).all()
    assert tall_masks(base, frozen, comparison="paper").densities.eq(1).all()


def test_nan_is_dropped_and_stays_where_it_is() -> None:
    base, rows = torch.randn(200), [torch.randn(200), torch.randn(200)]
    expected = tall_masks(base, rows, comparison="paper").select(0.2)
    rows[0][77] = torch.nan
    masks = tall_masks(base, rows, comparison="paper").select(0.2)
    for task in (0, 1):
        bits, before = masks.unpack(task), expected.unpack(task)
        before[77] = False
        assert torch.equal(bits, before)


def test_lambdas_in_any_order() -> None:
    base, finetuned = random_models((500,), 3)
    ascending = tall_masks(base, finetuned, lambdas=(0.2, 0.5, 0.9))
    shuffled = tall_masks(base, finetuned, lambdas=(0.9, 0.2, 0.5))
    assert shuffled.lambdas == (0.9, 0.2, 0.5)
    assert torch.equal(shuffled.densities, ascending.densities[:, [2, 0, 1]])
    for lambda_ in shuffled.lambdas:
        assert torch.equal(shuffled.select(lambda_).words, ascending.select(lambda_).words)


def test_densities_count_the_bits() -> None:
    base, finetuned = random_models((321, 5), 4)
    masks = tall_masks(base, finetuned, lambdas=LAMBDAS)
    assert masks.densities.dtype == torch.float64
    for column, lambda_ in enumerate(LAMBDAS):
        selected = masks.select(lambda_)
        for task in range(4):
            share = selected.unpack(task).double().mean()
            assert masks.densities[task, column] == pytest.approx(share.item(), abs=1e-15)


def test_select_per_task() -> None:
    base, finetuned = random_models((321,), 3)
    masks = tall_masks(base, finetuned)
    chosen = (0.6, 0.2, 0.4)
    by_order = masks.select(chosen)
    by_name = masks.select(dict(zip(finetuned, chosen, strict=True)))
    assert by_order.lambdas == by_name.lambdas == chosen
    assert torch.equal(by_order.words, by_name.words)
    for task, lambda_ in enumerate(chosen):
        assert torch.equal(by_order.words[task], masks.select(lambda_).words[task])


def test_merged_is_used_as_it_is() -> None:
    base, finetuned = random_models((300, 9), 3)
    vector = multi_task_vector(base, finetuned)
    default = tall_masks(base, finetuned)
    assert torch.equal(tall_masks(base, finetuned, merged=vector).codes, default.codes)
    other = {key: tensor * 0.5 for key, tensor in vector.items()}
    expected = reference.merging.tall_masks(base, finetuned, merged=other)
    assert torch.equal(tall_masks(base, finetuned, merged=other).codes, expected.codes)
    assert not torch.equal(expected.codes, default.codes)


def test_buffers_are_skipped() -> None:
    base, finetuned = random_models((30,), 2)
    expected = tall_masks(base, finetuned)
    for model in (base, *finetuned.values()):
        model["counter"], model["flags"] = torch.tensor(3), torch.tensor([True])
    masks = tall_masks(base, finetuned)
    assert torch.equal(masks.codes, expected.codes)
    assert [info.key for info in masks.layout.skipped] == ["counter", "flags"]
    assert masks.layout.keys == ("layer0",)


def test_models_without_parameters() -> None:
    for base in ({}, {"counter": torch.tensor(1)}, {"w": torch.zeros(0, 3)}, torch.zeros(0)):
        masks = tall_masks(base, [base, base])
        assert masks.num_parameters == 0
        assert masks.densities.eq(0).all()
        selected = masks.select(0.4)
        assert selected.unpack(1).shape == (0,)
        assert selected.histogram().tolist() == [0, 0, 0]
        assert selected.overlap().eq(0).all()
        assert selected.consensus(1).counts().shape == (0,)


def test_tied_tensors_and_one_tensor_for_all() -> None:
    shared = torch.randn(50)
    base = {"a": shared, "b": shared}
    tuned = torch.randn(50)
    masks = tall_masks(base, [{"a": tuned, "b": tuned}, base]).select(0.2)
    bits = masks.unpack(0)
    assert torch.equal(bits[:50], bits[50:])


def test_inputs_that_require_grad() -> None:
    base = torch.randn(100, requires_grad=True)
    masks = tall_masks(base, [torch.randn(100, requires_grad=True)])
    assert not masks.codes.requires_grad
    assert not masks.densities.requires_grad


@pytest.mark.parametrize("instructions", ["avx2", "portable"])
def test_every_instruction_set_gives_the_same_bits(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {}
    for name, sample in SAMPLES.items():
        expected[name] = tall_masks(*sample.args, **sample.kwargs).codes
    monkeypatch.setenv("ROBUSTCORE_CPU_INSTRUCTIONS", instructions)
    for name, sample in SAMPLES.items():
        assert torch.equal(tall_masks(*sample.args, **sample.kwargs).codes, expected[name]), name


def test_threads_do_not_change_bits(
    threads: Callable[[int], contextlib.AbstractContextManager[None]],
) -> None:
    base, finetuned = random_models((100_003, 7, 50_000), 5)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            masks = tall_masks(base, finetuned)
            selected = masks.select(0.4)
            facts = [selected.counts(), selected.histogram(), selected.overlap()]
            results.append([masks.codes, masks.densities, *facts, selected.consensus(2).words])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_task_vectors() -> None:
    base, finetuned = random_models((20, 3), 3)
    vectors = [task_vector(base, model) for model in finetuned.values()]
    total = multi_task_vector(base, finetuned)
    for key in base:
        assert torch.equal(total[key], (vectors[0][key] + vectors[1][key]) + vectors[2][key])
    half = task_vector(torch.ones(3).half(), torch.ones(3).half())
    assert half.dtype == torch.float32


def test_task_vectors_are_differentiable() -> None:
    base = torch.randn(4, dtype=torch.float64, requires_grad=True)
    rows = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda b, *r: multi_task_vector(b, list(r)), (base, *rows))


MEMORY = """
import resource, sys, torch
from robustcore.merging import tall_masks
parameters, tasks = 4_000_000, 8
base = torch.randn(parameters)
finetuned = [base + 0.1 * torch.randn(parameters) for _ in range(tasks)]
tall_masks(base[:1000], [row[:1000] for row in finetuned])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
masks = tall_masks(base, finetuned)
extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(extra, masks.nbytes)
"""


def test_memory() -> None:
    """Beside its packed result the operator keeps less than 8 MiB, half of one row of weights."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extra, packed = map(int, done.stdout.split())
    assert packed == 8 * 3 * 8 * ((4_000_000 + 63) // 64)
    assert extra <= 1.05 * packed + 8 * 2**20


def test_module_exports() -> None:
    assert set(merging.__all__) >= {"tall_masks", "TallMasks", "PackedMasks", "multi_task_vector"}
