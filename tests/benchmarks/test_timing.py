"""The logic of the harness. Nothing here asserts a time."""

import gc

import pytest

from robustcore.benchmarks import timing
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


@pytest.fixture
def turns(monkeypatch):
    """Runs contestants that are said to last so long, and tells in which order they were called."""

    def run(seconds, plan):
        order = []

        def guess(call, at_least, clock):
            call()
            return seconds[order[-1][0]]

        monkeypatch.setattr(timing, "_seconds_of_one", guess)
        calls = [lambda k, i=i: order.append((i, k)) for i in range(len(seconds))]
        measurements = take_turns(calls, plan, Clock("cpu"))
        return order[: len(seconds)], order[len(seconds) :], measurements

    return run


PLAN = TimingPlan(seconds=1.0, block_seconds=0.01, least_samples=3, most_samples=8)


def test_contestants_take_turns(turns):
    first, measured, measurements = turns([0.2, 0.2], PLAN)
    assert [i for i, _ in first] == [0, 1]
    assert [i for i, _ in measured] == [0, 1] * 5
    assert [len(m.samples) for m in measurements] == [5, 5]


def test_every_call_gets_the_next_input_set(turns):
    first, measured, _ = turns([0.2, 0.3, 0.1], PLAN)
    order = [k for _, k in first + measured]
    assert order == list(range(1, len(order) + 1))


def test_slow_contestants_skip_turns_evenly(turns):
    _, measured, measurements = turns([0.1, 0.25], PLAN)
    order = "".join("fs"[i] for i, _ in measured)
    assert order == "ffsffsffsffs"
    assert [len(m.samples) for m in measurements] == [8, 4]


def test_where_a_call_takes_longer_than_all_the_time_the_first_one_counts(turns):
    _, measured, measurements = turns([5.0], PLAN)
    assert len(measured) == 2
    assert measurements[0].samples[0] == 5.0
    assert len(measurements[0].samples) == 3


def test_where_a_call_takes_far_longer_one_sample_is_enough(turns):
    _, measured, measurements = turns([8.5, 0.2], PLAN)
    assert measurements[0].samples == [8.5]
    assert [i for i, _ in measured] == [1] * 5


def test_short_calls_run_in_blocks(turns):
    _, measured, (measurement,) = turns([0.001], PLAN)
    assert measurement.calls_per_sample == 10
    assert len(measured) == 10 * 8


def test_garbage_collection_is_on_again_after_an_error():
    count = iter(range(3))

    def fails_later(k):
        if next(count) == 2:
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        take_turns([fails_later], TimingPlan(1.0, 0.0, 5, 5), Clock("cpu"))
    assert gc.isenabled()
