"""The statistics of `dhead-trt bench` against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhead_trt.bench import Latency, paired_ratio, steadiness

# -- percentiles -------------------------------------------------------------------------------------------------------


def test_percentiles_of_whole_numbers() -> None:
    """1 … 101: the p-th percentile is p + 1."""
    found = Latency.of(np.random.default_rng(0).permutation(np.arange(1.0, 102.0)))
    assert (found.p50, found.p90, found.p95, found.p99) == (51, 91, 96, 100)
    assert (found.calls, found.min, found.max, found.mean) == (101, 1, 101, 51)
    assert found.std == pytest.approx(math.sqrt(101 * 102 / 12))  # of 1 … n with n - 1


@pytest.mark.parametrize(("calls", "known"), [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_percentiles_need_calls_beyond_them(calls: int, known: int) -> None:
    found = Latency.of(np.ones(calls))
    assert [p is not None for p in (found.p90, found.p95, found.p99)] == [i < known for i in range(3)]
    assert (found.p50, found.std) == (1, 0)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Latency.of([])


# -- ratios ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30),
    st.floats(0.01, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_constant_factor_is_found_exactly(base: list[float], factor: float) -> None:
    """Whatever the rounds were like: each pair says the same, so there is no doubt."""
    found = paired_ratio(np.array(base) * factor, base)
    assert found.value == pytest.approx(factor, rel=1e-9)
    assert found.rounds == len(base)
    if len(base) < 6:
        assert found.low is None
        assert found.high is None
        assert not found.differs
    else:
        assert found.low == pytest.approx(factor, rel=1e-6)
        assert found.high == pytest.approx(factor, rel=1e-6)


def test_the_inverse_turns_the_interval_round() -> None:
    rng = np.random.default_rng(0)
    found = paired_ratio(rng.lognormal(0.2, 0.1, 20), np.ones(20))
    back = found.inverse()
    assert found.low is not None
    assert found.high is not None
    assert (back.value, back.low, back.high) == (1 / found.value, 1 / found.high, 1 / found.low)
    assert found.low < found.value < found.high
    assert found.differs
    assert back.differs


@pytest.mark.parametrize("rounds", [10, 40])
@pytest.mark.parametrize("tail", [False, True], ids=["normal", "heavy tail"])
def test_the_interval_covers_as_often_as_it_says(rounds: int, tail: bool) -> None:
    """Made rounds with a mood of the machine that both share: the true ratio 1.25 lies inside in 95 of 100 runs."""
    rng = np.random.default_rng(rounds + tail)
    inside = trials = 0
    widths = []
    for trial in range(400):
        mood = rng.lognormal(0, 0.5, rounds)
        noise = [rng.standard_t(4, rounds) * 0.02 if tail else rng.normal(0, 0.02, rounds) for _ in range(2)]
        found = paired_ratio(
            1.25 * mood * np.exp(noise[0]), mood * np.exp(noise[1]), resamples=800, seed=trial
        )  # fmt: skip
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 1.25 <= found.high
        widths.append(found.high - found.low)
        trials += 1
    assert 0.915 <= inside / trials <= 0.985  # 0.95 ± 3 standard errors of 400 trials
    # A tenth of what unpaired rounds would give: the mood cancels.
    assert np.median(widths) < 0.1 * 1.25 * 2 * 1.96 * 0.5 * math.sqrt(2 / rounds)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0], [-1.0])])
def test_ratios_of_nothing(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="positive times"):
        paired_ratio(a, b)


# -- drift -------------------------------------------------------------------------------------------------------------


def test_steady_noise_is_seldom_called_drift() -> None:
    rng = np.random.default_rng(0)
    verdicts = [steadiness(rng.lognormal(0, 0.2, 40)) for _ in range(300)]
    assert sum(v.start == 0 and v.settled for v in verdicts) >= 285
    assert sum(not v.settled for v in verdicts) <= 2


@pytest.mark.parametrize("total", [0.2, -0.2])
def test_a_slope_never_settles(total: float) -> None:
    rng = np.random.default_rng(1)
    times = 5.0 * (1 + total * np.linspace(0, 1, 60)) * rng.normal(1, 0.01, 60)
    found = steadiness(times)
    assert not found.settled
    assert found.start == 0
    assert found.drift == pytest.approx(total / (1 + total / 2), abs=0.02)  # of the median
    assert found.p < 1e-6
    assert ("slower" if total > 0 else "faster") in found.describe()


def test_a_slow_beginning_is_left_out() -> None:
    """The clock rises in the first quarter, and stays."""
    rng = np.random.default_rng(2)
    times = np.concatenate([np.linspace(2, 1.05, 10), np.ones(30)]) * rng.normal(1, 0.01, 40)
    found = steadiness(times)
    assert (found.settled, found.start, found.rounds) == (True, 10, 40)
    assert found.describe() == "steady from round 11 of 40"


def test_a_small_or_short_trend_is_none() -> None:
    assert steadiness(np.linspace(1, 1.02, 50)).settled  # sure, but 2 %
    assert steadiness([1.0, 2.0, 3.0]).settled  # three rounds say nothing
    assert steadiness(np.ones(50)) == steadiness(np.ones(50) * 7)
    assert steadiness(np.ones(50)).p == 1


@pytest.mark.parametrize("rounds", [6, 8, 9, 10, 11, 12, 15])
def test_a_slope_over_few_rounds_is_seen(rounds: int) -> None:
    """What is left of few rounds is too short for the test, and is not taken for steady."""
    assert not steadiness(np.linspace(1, 1.5, rounds)).settled


def test_the_trend_test_is_mann_and_kendalls() -> None:
    """Five rising numbers: S = 10, variance 5·4·15/18, z = 9/√16.67."""
    found = steadiness([1.0, 1.1, 1.2, 1.3, 1.4])
    assert found.p == pytest.approx(math.erfc(9 / math.sqrt(5 * 4 * 15 / 18) / math.sqrt(2)))
    assert found.drift == pytest.approx(0.4 / 1.2)
