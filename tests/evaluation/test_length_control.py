"""Length control: what length bought is taken off, and what it did not buy is not."""

import numpy as np
import pytest

from rlhf.evaluation.length_control import length_controlled

PROMPTS = 300


def lengths(rng: np.random.Generator, longer: float, shape=PROMPTS) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(10, 40, shape) + longer, rng.integers(10, 40, shape)


def test_a_judge_who_takes_the_longer_reply_is_corrected():
    for seed in range(10):
        ours, theirs = lengths(np.random.default_rng(seed), longer=10)
        outcomes = np.where(ours == theirs, 0.5, ours > theirs)
        found = length_controlled(outcomes, ours, theirs)
        assert outcomes.mean() > 0.7 and abs(found.estimate.mean - 0.5) < 0.1, found
        assert 0.1 < found.overlap < 0.5 and abs(found.matched_rate - 0.5) < 0.2


def test_a_judge_who_does_not_look_at_length_is_left_alone():
    rng = np.random.default_rng(0)
    ours, theirs = lengths(rng, longer=10)
    outcomes = (rng.random(PROMPTS) < 0.65).astype(float)
    found = length_controlled(outcomes, ours, theirs).estimate
    assert abs(found.mean - 0.65) < 0.07 and found.low < 0.65 < found.high


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_covers_the_rate_at_equal_length(seeds):
    """The truth, 0.6, is planted; the judge also likes length, which moves the raw rate to about 0.75."""
    hits, raw = 0, []
    scale = np.std(np.subtract(*lengths(np.random.default_rng(9), longer=10, shape=100_000)))
    for trial in range(400):
        rng = np.random.default_rng(1000 + trial)
        ours, theirs = lengths(rng, longer=10, shape=(seeds, PROMPTS))
        logit = np.log(0.6 / 0.4) + 1.5 * np.tanh((ours - theirs) / scale)
        outcomes = (rng.random((seeds, PROMPTS)) < 1 / (1 + np.exp(-logit))).astype(float)
        found = length_controlled(outcomes, ours, theirs, seed=trial).estimate
        raw.append(outcomes.mean())
        hits += found.low <= 0.6 <= found.high
    print(f"{seeds} seeds: {hits / 4:.1f}% cover 0.6, raw rate {np.mean(raw):.3f}")
    assert np.mean(raw) > 0.7 and 0.92 <= hits / 400 <= 0.98


def test_replies_that_are_always_longer_cannot_be_corrected_and_say_so():
    found = length_controlled(np.ones(50), np.full(50, 30), np.full(50, 10))
    assert found.overlap == 0.0 and found.matched == 0 and np.isnan(found.matched_rate)


def test_equal_lengths_change_nothing_and_shapes_must_agree():
    outcomes = np.array([1.0, 0.0, 0.5, 1.0] * 20)
    found = length_controlled(outcomes, np.full(80, 12), np.full(80, 12))
    assert found.estimate.mean == pytest.approx(outcomes.mean(), abs=1e-6) and found.matched == 80
    with pytest.raises(ValueError, match="must have one shape"):
        length_controlled(outcomes, np.ones(3), np.ones(3))
