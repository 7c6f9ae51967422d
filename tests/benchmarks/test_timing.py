"""The logic of the harness. Nothing here asserts a time."""

import gc
import time

import pytest

from robustcore.benchmarks.timing import Clock, TimingPlan, summarize, take_turns


def test_median_and_quartiles():
    summary = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert summary == {
        "median_s": 3.0,
        "first_quartile_s": 2.0,
        "third_quartile_s": 4.0,
        "least_s": 1.0,
        "most_s": 5.0,
    }


def test_one_sample_is_its_own_median():
    assert set(summarize([2.0]).values()) == {2.0}


def recorded(plan, contestants=2):
    order = []
    calls = [lambda k, i=i: order.append((i, k)) for i in range(contestants)]
    return order, take_turns(calls, plan, Clock("cpu"))


def test_contestants_take_turns():
    order, measurements = recorded(
        TimingPlan(seconds=0.0, block_seconds=0.0, least_samples=4, most_samples=4)
    )
    measured = [i for i, _ in order[2:]]  # the first call of each finds the length of a block
    assert measured == [0, 1] * 4
    assert [len(m.samples) for m in measurements] == [4, 4]


def test_every_call_gets_the_next_input_set():
    order, _ = recorded(TimingPlan(0.0, 0.0, 3, 3), contestants=3)
    assert [k for _, k in order] == list(range(1, len(order) + 1))


def test_a_slow_contestant_skips_turns_evenly():
    order = []

    def fast(k):
        order.append("fast")

    def slow(k):
        order.append("slow")
        time.sleep(0.02)

    plan = TimingPlan(seconds=0.0, block_seconds=0.0, least_samples=2, most_samples=2)
    take_turns([fast, slow], plan, Clock("cpu"))
    assert order[2:] == ["fast", "slow"] * 2

    order.clear()
    # The fast one can afford the most samples, the slow one only the least.
    plan = TimingPlan(seconds=0.01, block_seconds=0.0, least_samples=2, most_samples=8)
    take_turns([fast, slow], plan, Clock("cpu"))
    turns = order[2:]
    assert turns.count("slow") == 2
    fast_between = [len(part) for part in "".join(t[0] for t in turns).split("s")]
    assert fast_between[0] == fast_between[1] == turns.count("fast") / 2


def test_short_calls_are_measured_in_blocks():
    _, measurements = recorded(TimingPlan(0.0, 0.002, 1, 1))
    assert all(m.calls_per_sample > 10 for m in measurements)


def test_garbage_collection_is_on_again_after_an_error():
    count = iter(range(3))

    def fails_later(k):
        if next(count) == 2:
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        take_turns([fails_later], TimingPlan(0.0, 0.0, 5, 5), Clock("cpu"))
    assert gc.isenabled()
