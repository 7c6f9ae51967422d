"""Correct kernels pass under every schedule and give the right results."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simt.harness import Executor

SIZES = [0, 1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025]


@pytest.mark.parametrize("columns", SIZES)
def test_block_reduce(simt: Executor, columns: int) -> None:
    values = torch.randn(5, columns)
    sums = torch.empty(5)
    simt.run("row_sum", values=values, sums=sums, columns=columns, seeds=3)
    torch.testing.assert_close(sums, values.double().sum(1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("what", ["sum", "maximum"])
def test_block_reduce_sizes(simt: Executor, threads: int, what: str) -> None:
    values = torch.randn(2, threads)
    results = torch.empty(2, threads)
    simt.run(f"block_{what}", values=values, results=results, threads=threads)
    expected = values.double().sum(1) if what == "sum" else values.double().amax(1)
    # Every thread gets the same bits.
    assert torch.equal(results, results[:, :1].expand_as(results))
    torch.testing.assert_close(results[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_block_reduce_again_at_once(simt: Executor) -> None:
    values, results = torch.randn(128), torch.empty(2, 128)
    simt.run("repeated_reduce", values=values, results=results, seeds=3)
    expected = torch.stack([values.double().sum(), values.double().square().sum()])
    torch.testing.assert_close(results, expected.float()[:, None].expand(2, 128))


def test_block_maximum_keeps_nan(simt: Executor) -> None:
    for place in (0, 17, 255):
        values = torch.randn(1, 256)
        values[0, place] = torch.nan
        results = torch.empty(1, 256)
        simt.run("block_maximum", values=values, results=results, threads=256)
        assert results.isnan().all()


@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_block_reduce_keeps_the_order(simt: Executor, threads: int) -> None:
    """A functor that is associative but not commutative: composition of affine maps."""
    slopes = torch.where(torch.rand(threads) < 0.5, -1.0, 1.0)
    offsets = torch.randint(-4, 5, (threads,)).float()
    results = torch.empty(threads, 2)
    simt.run("block_affine", slopes=slopes, offsets=offsets, results=results, threads=threads)
    slope, offset = 1.0, 0.0
    for a, b in zip(slopes.tolist(), offsets.tolist(), strict=True):
        slope, offset = slope * a, offset * a + b  # apply the earlier map first
    assert torch.equal(results, torch.tensor([slope, offset]).expand_as(results))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_warp_reduce_width(simt: Executor, width: int) -> None:
    values = torch.arange(64.0)
    results = torch.empty(64)
    simt.run("warp_sum", values=values, results=results, width=width)
    expected = values.view(-1, width).sum(1, keepdim=True).expand(-1, width).reshape(64)
    assert torch.equal(results, expected)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 3000), seed=st.integers(0, 2**32 - 1))
def test_vector_copy(simt: Executor, count: int, seed: int) -> None:
    source = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    destination = torch.empty(count)
    simt.run("vector_copy", source=source, destination=destination)
    assert torch.equal(destination, source)


def test_strided_memory(simt: Executor) -> None:
    """A strided tensor is passed as the memory between its first and its last element."""
    source = torch.arange(20.0)
    destination = torch.empty(19)
    simt.run("vector_copy", source=source[::2], destination=destination)
    assert torch.equal(destination, source[:19])
    row = torch.full((1,), 3.0).expand(5)
    single = torch.empty(1)
    simt.run("vector_copy", source=row, destination=single)
    assert single.item() == 3.0


@pytest.mark.parametrize("count", SIZES)
def test_ballot_pack(simt: Executor, count: int) -> None:
    values = torch.randn(count)
    words = torch.empty((count + 31) // 32, dtype=torch.int32)
    simt.run("ballot_pack", values=values, words=words)
    bits = (words[:, None] >> torch.arange(32)) & 1
    assert torch.equal(bits.flatten()[:count].bool(), values > 0)


@pytest.mark.parametrize("columns", [1, 5, 31, 32])
def test_warp_scan(simt: Executor, columns: int) -> None:
    values = torch.randint(-100, 100, (6, columns), dtype=torch.int32)
    sums = torch.empty_like(values)
    simt.run("warp_scan", values=values, sums=sums, columns=columns)
    assert torch.equal(sums, values.cumsum(1).int())


def test_shared_reverse(simt: Executor) -> None:
    values = torch.randn(3, 64)
    result = torch.empty_like(values)
    simt.run("shared_reverse", values=values, reversed=result)
    assert torch.equal(result, values.flip(1))


def test_histogram(simt: Executor) -> None:
    values = torch.randint(0, 10, (1000,), dtype=torch.int32)
    counts = torch.zeros(10, dtype=torch.int32)
    simt.run("histogram", values=values, counts=counts)
    assert torch.equal(counts, values.bincount(minlength=10).int())


def test_last_block_sum(simt: Executor) -> None:
    values, total = torch.randn(9, 100), torch.empty(1)
    finished = torch.zeros(1, dtype=torch.int32)
    simt.run("last_block_sum", values=values, finished=finished, total=total, rows=9, seeds=4)
    torch.testing.assert_close(total[0], values.double().sum().float())


def test_votes(simt: Executor) -> None:
    """Every warp primitive beside the shuffles against its definition."""
    values = torch.randint(-9, 9, (64,), dtype=torch.int32)
    results = torch.empty((12, 64), dtype=torch.int32)
    simt.run("warp_votes", values=values, results=results)
    for index, warp in enumerate(values.view(2, 32)):
        got = results[:, 32 * index : 32 * index + 32]
        numbers = warp.tolist()
        positive = sum(1 << lane for lane, value in enumerate(numbers) if value > 0)
        as_int32 = positive - (1 << 32) if positive >= 1 << 31 else positive
        conjunction, disjunction, parity = -1, 0, 0
        for value in numbers:
            conjunction, disjunction, parity = (
                conjunction & value,
                disjunction | value,
                parity ^ value,
            )
        rows = [
            as_int32,
            int(positive != 0),
            int(all(value > -9 for value in numbers)),
            sum(numbers),
            min(numbers),
            max(numbers),
            conjunction,
            disjunction,
            parity,
        ]
        for row, expected in enumerate(rows):
            assert got[row].tolist() == [expected] * 32, row
        equal = (warp[:, None] == warp[None, :]).long() @ (1 << torch.arange(32))
        assert torch.equal(got[9].long() & 0xFFFFFFFF, equal)
        assert torch.equal(got[10], torch.cat([warp[:4], warp[:-4]]))  # up by 4
        assert torch.equal(got[11], warp.view(4, 8)[:, :1].expand(4, 8).reshape(32))  # width 8
