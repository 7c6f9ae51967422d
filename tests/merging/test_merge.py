"""merge(): what goes in and out, mismatches, non-finite weights, files, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustcore.merging import METHODS, merge
from robustcore.merging.merge import prepare

StateDict = dict[str, Tensor]


def models(tasks: int = 2, rows: int = 50) -> tuple[StateDict, list[StateDict]]:
    generator = torch.Generator().manual_seed(5)
    base = {
        "embed": torch.randn(rows, 12, generator=generator),
        "layers.0.w": torch.randn(40, 120, generator=generator),
        "layers.1.w": torch.randn(40, 120, generator=generator),
        "scalar": torch.randn((), generator=generator),
    }
    finetuned = [
        {
            key: value + torch.randn(value.shape, generator=generator) / 7
            for key, value in base.items()
        }
        for _ in range(tasks)
    ]
    return base, finetuned


def same(actual: Any, expected: Any) -> bool:
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[key], expected[key]) for key in expected
    )


# --- kinds of models


def test_tensors_state_dicts_and_files_give_the_same_bits(tmp_path: Path) -> None:
    base, finetuned = models()
    save_file(base, tmp_path / "base.safetensors")
    for index, model in enumerate(finetuned):
        save_file(model, tmp_path / f"{index}.safetensors")
    expected = merge(base, finetuned, method="ties")
    paths = [tmp_path / "0.safetensors", str(tmp_path / "1.safetensors")]
    assert same(merge(tmp_path / "base.safetensors", paths, method="ties"), expected)
    assert same(merge(base, {"a": paths[0], "b": finetuned[1]}, method="ties"), expected)
    report = merge(base, paths, method="ties", output=tmp_path / "out.safetensors")
    assert report.walks == 3
    assert same(load_file(tmp_path / "out.safetensors"), expected)
    alone = merge(base["embed"], [model["embed"] for model in finetuned], method="dare")
    assert isinstance(alone, Tensor)
    assert torch.equal(
        alone, merge({"": base["embed"]}, [{"": m["embed"]} for m in finetuned], method="dare")[""]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_may_differ_and_the_result_has_that_of_the_base(dtype: torch.dtype) -> None:
    base, finetuned = models()
    narrow = {key: value.to(dtype) for key, value in base.items()}
    merged = merge(narrow, finetuned, scale=0.5)
    for key, value in merged.items():
        wide = torch.promote_types(dtype, torch.float32)
        start = narrow[key].to(wide)
        changes = [model[key].to(wide) - start for model in finetuned]
        assert value.dtype == dtype
        assert torch.equal(value, (start + 0.5 * (changes[0] + changes[1])).to(dtype))
    chosen = merge(narrow, finetuned, dtype=torch.float32)
    assert {value.dtype for value in chosen.values()} == {torch.float32}


def test_differences_are_taken_after_widening() -> None:
    base = torch.full((64,), 256.0).bfloat16()
    tuned = torch.linspace(256, 260, 64)
    assert torch.equal(merge(base, [tuned], scale=1.0, dtype=torch.float32), tuned)


def test_buffers_and_ties_are_those_of_the_base() -> None:
    base, finetuned = models()
    base["steps"] = torch.tensor([1, 2])
    base["tied"] = base["embed"]
    finetuned = [
        model | {"steps": torch.tensor([3, 4]), "tied": model["embed"]} for model in finetuned
    ]
    merged = merge(base, finetuned)
    assert torch.equal(merged["steps"], base["steps"])
    assert merged["tied"] is merged["embed"]
    finetuned[1]["tied"] = finetuned[1]["embed"].clone()
    with pytest.raises(ValueError, match="must be another name of 'embed'"):
        merge(base, finetuned)


def test_inputs_are_not_changed() -> None:
    base, finetuned = models()
    before = [{key: value.clone() for key, value in model.items()} for model in (base, *finetuned)]
    for method in METHODS:
        count = {"slerp": 1, "rift": 1}.get(method, 2)
        merge(base, finetuned[:count], method=method)
    assert all(same(a, b) for a, b in zip((base, *finetuned), before, strict=True))


def test_strided_and_grad_requiring_weights() -> None:
    base, finetuned = models()
    odd = {key: value.clone().t() if value.dim() == 2 else value for key, value in base.items()}
    odd = {key: value.t() if value.dim() == 2 else value for key, value in odd.items()}
    odd = {key: value.requires_grad_() for key, value in odd.items()}
    merged = merge(odd, finetuned)
    assert same(merged, merge(base, finetuned))
    assert not any(value.requires_grad for value in merged.values())


# --- mismatches


def test_one_message_lists_every_difference() -> None:
    base, finetuned = models()
    base["n"] = torch.tensor(1)
    del finetuned[0]["scalar"]
    finetuned[0]["extra"] = torch.zeros(2)
    finetuned[1]["embed"] = torch.zeros(51, 12)
    finetuned[1]["n"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match="got 5 differences") as caught:
        merge(base, {"x": finetuned[0], "y": finetuned[1]})
    for line in (
        "x['scalar'] is missing",
        "x['extra'] is not in base",
        "y['embed'] must have shape (50, 12), got (51, 12)",
        "x['n'] is missing",
        "y['n'] must be int64 (), got float32 ()",
    ):
        assert f"\n  {line}" in str(caught.value)


def test_skip_keeps_the_base() -> None:
    base, finetuned = models()
    finetuned[0]["embed"] = torch.zeros(51, 12)
    del finetuned[1]["layers.1.w"]
    finetuned[1]["extra"] = torch.zeros(3)
    merged = merge(base, finetuned, mismatch="skip")
    assert torch.equal(merged["embed"], base["embed"])
    assert torch.equal(merged["layers.1.w"], base["layers.1.w"])
    assert "extra" not in merged
    plain = merge({"w": base["layers.0.w"]}, [{"w": model["layers.0.w"]} for model in finetuned])
    assert torch.equal(merged["layers.0.w"], plain["w"])


@pytest.mark.parametrize("as_files", [False, True])
def test_crop_and_pad_rows(as_files: bool, tmp_path: Path) -> None:
    base, finetuned = models()
    longer = torch.randn(55, 12, generator=torch.Generator().manual_seed(1))
    shorter = finetuned[1]["embed"][:45].clone()
    start = base["embed"]
    given: list[Any] = [finetuned[0] | {"embed": longer}, finetuned[1] | {"embed": shorter}]
    if as_files:
        for index, model in enumerate(given):
            save_file(model, tmp_path / f"{index}.safetensors")
        given = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    cropped = merge(base, given, mismatch="crop", scale=1.0)["embed"]
    both = (longer[:45] - start[:45]) + (shorter - start[:45])
    assert torch.equal(cropped, start[:45] + both)
    padded = merge(base, given, mismatch="pad", scale=1.0)["embed"]
    assert torch.equal(padded[:45], start[:45] + both)
    assert torch.equal(padded[45:50], start[45:] + (longer[45:50] - start[45:]))
    assert torch.equal(padded[50:], longer[50:])


def test_other_shapes_cannot_be_cropped() -> None:
    base, finetuned = models()
    finetuned[0]["embed"] = torch.zeros(50, 13)
    for policy in ("crop", "pad"):
        merged = merge(base, finetuned, mismatch=policy)
        assert torch.equal(merged["embed"], base["embed"])


def test_plans_tell_what_they_do() -> None:
    base, finetuned = models()
    finetuned[0]["embed"] = torch.zeros(51, 12)
    base["n"] = torch.tensor(1)
    for model in finetuned:
        model["n"] = torch.tensor(2)
    plan, _ = prepare(
        "merge", base, finetuned, method="linear", mismatch="skip", dtype=None, options={}
    )
    assert [tensor.key for tensor in plan.tensors] == ["layers.0.w", "layers.1.w", "scalar"]
    assert [info.key for info in plan.carried] == ["embed", "n"]
    assert [str(entry.action) for entry in plan.mismatches] == ["kept as in base"]
    assert plan.bytes_written == sum(v.numel() * v.element_size() for v in base.values())
    assert plan.bytes_read == 3 * 4 * (2 * 40 * 120 + 1) + 50 * 12 * 4 + 8


# --- weights that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_weights_are_refused_by_name(value: float, tmp_path: Path) -> None:
    base, finetuned = models()
    finetuned[1]["layers.1.w"][3, 4] = value
    with pytest.raises(ValueError, match=r"1\['layers\.1\.w'\] has 1 "):
        merge(base, finetuned, output=tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []
    merged = merge(base, finetuned, nonfinite="allow")
    assert not merged["layers.1.w"][3, 4].isfinite()
    merged["layers.1.w"][3, 4] = 0
    assert all(bool(tensor.isfinite().all()) for tensor in merged.values())


def test_results_that_overflow_are_refused() -> None:
    base = torch.full((10,), 60000.0).half()
    with pytest.raises(ValueError, match="too large for float16"):
        merge(base, [base.float() + 40000], scale=1.0)


def test_nonfinite_weights_in_every_method() -> None:
    base, finetuned = models()
    finetuned[0]["embed"][1] = float("nan")
    for method in METHODS:
        count = {"slerp": 1, "rift": 1}.get(method, 2)
        with pytest.raises(ValueError, match="embed"):
            merge(base, finetuned[:count], method=method)


# --- arguments


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "method must be one of", {"method": "magic"}),
        (TypeError, "has the options", {"density": 0.5}),
        (ValueError, "density must be from 0 to 1", {"method": "ties", "density": 1.5}),
        (TypeError, "density must be a number", {"method": "ties", "density": "half"}),
        (ValueError, "mode must be one of", {"method": "ties", "mode": "mergekit"}),
        (ValueError, "merge must be mean", {"method": "ties", "mode": "lora", "merge": "max"}),
        (ValueError, "one number per task", {"weights": [1.0]}),
        (ValueError, "weights.*finite", {"weights": float("nan")}),
        (ValueError, "slerp takes 1 model", {"method": "slerp"}),
        (ValueError, "k must be from 0 to 2", {"method": "consensus", "k": 3}),
        (ValueError, "lambdas must be positive", {"method": "consensus", "lambdas": 0.0}),
        (ValueError, "density - epsilon", {"method": "della", "density": 0.1, "epsilon": 0.2}),
        (ValueError, "seed must be from 0", {"method": "dare", "seed": -1}),
        (ValueError, "mismatch must be", {"mismatch": "ignore"}),
        (ValueError, "nonfinite must be", {"nonfinite": "skip"}),
        (ValueError, "dtype must be a floating-point", {"dtype": torch.int8}),
        (ValueError, "max_memory must be at least", {"max_memory": 1000}),
        (ValueError, "overwrite is for merges with an output", {"overwrite": True}),
        (ValueError, "at least 2", {"method": "lines", "blocks": r"none(\d)"}),
        (ValueError, "must have one group", {"method": "lines", "blocks": "layers"}),
        (TypeError, "lines has the entries", {"lines": {"gamma": 1}}),
    ],
)
def test_bad_options(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    base, finetuned = models()
    with pytest.raises(error, match=f"^merge: .*{message}"):
        merge(base, finetuned, **options)


def test_bad_models() -> None:
    base, finetuned = models()
    with pytest.raises(ValueError, match="at least one model"):
        merge(base, [])
    with pytest.raises(TypeError, match="sequence or a mapping"):
        merge(base, base["embed"])
    with pytest.raises(TypeError, match="names in finetuned"):
        merge(base, {1: finetuned[0]})
    with pytest.raises(TypeError, match=r"state_dict"):
        merge(torch.nn.Linear(2, 2), finetuned)
    with pytest.raises(FileNotFoundError):
        merge(base, ["/no/such/file.safetensors"])


# --- depth


@pytest.mark.parametrize(
    ("keys", "blocks"),
    [
        (["model.layers.0.q.weight", "model.layers.11.mlp.0.w", "lm_head.weight"], [0, 1, None]),
        (["visual.transformer.resblocks.3.a", "visual.transformer.resblocks.10.b"], [0, 1]),
        (["bert.encoder.layer.0.x", "bert.encoder.layer.2.x", "pooler.x"], [0, 1, None]),
        (["transformer.h.1.x", "transformer.h.0.x"], [1, 0]),
        (["layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.x", "fc.w"], [0, 1, 2, None]),
        (["blocks.0.mlp.0.w", "blocks.1.mlp.2.w", "mlp.0.w"], [0, 1, None]),
    ],
)
def test_blocks_are_recognised(keys: list[str], blocks: list[int | None]) -> None:
    from robustcore.merging.depth import find_blocks

    found = find_blocks("test", keys).block_of
    assert [found.get(key) for key in keys] == blocks


def test_blocks_that_are_ambiguous_or_missing_are_refused() -> None:
    from robustcore.merging.depth import find_blocks

    with pytest.raises(ValueError, match="ambiguous"):
        find_blocks("test", ["text.layers.0.w", "text.layers.1.w", "vision.layers.0.w"])
    with pytest.raises(ValueError, match="at least 2"):
        find_blocks("test", ["layers.0.w", "head"])
    with pytest.raises(ValueError, match="at least 2"):
        find_blocks("test", ["mlp.0.w", "mlp.2.w"])
    keys = ["text.layers.0.w", "text.layers.1.w", "vision.layers.0.w"]
    assert find_blocks("test", keys, r"^text\.layers\.(\d+)").block_of == {keys[0]: 0, keys[1]: 1}


# --- LoRA adapters


def test_lora_adapters_are_task_vectors(tmp_path: Path) -> None:
    base, finetuned = models()
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(4, 120, generator=generator)
    second = torch.randn(40, 4, generator=generator)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    base = {"layers.0.w.weight": base["layers.0.w"], "embed.weight": base["embed"]}
    tuned = {
        "layers.0.w.weight": finetuned[0]["layers.0.w"],
        "embed.weight": finetuned[0]["embed"],
    }
    prefix = "base_model.model.layers.0.w"
    names = {f"{prefix}.lora_A.weight": first, f"{prefix}.lora_B.weight": second}
    save_file(names, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["w"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    merged = merge(base, {"lora": adapter, "full": tuned}, scale=1.0)
    change = 2 * (second.double() @ first.double())
    expected = change + tuned["layers.0.w.weight"].double()
    torch.testing.assert_close(merged["layers.0.w.weight"].double(), expected, rtol=1e-5, atol=1e-5)
    start, end = base["embed.weight"], tuned["embed.weight"]
    assert torch.equal(merged["embed.weight"], start + (end - start))
    ties = merge(base, [adapter, tuned], method="ties", mode="lora", density=1.0)
    assert ties["embed.weight"].isfinite().all()


def test_sharded_output(tmp_path: Path) -> None:
    base, finetuned = models()
    expected = merge(base, finetuned, method="dare")
    merge(base, finetuned, method="dare", output=tmp_path / "out", max_shard_size=25_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    again = merge(tmp_path / "out", [tmp_path / "out"])
    assert same(again, expected)
