"""Win rates: ties, both orders, and intervals that hold what they promise."""

import random

import pytest

from rlhf.evaluation.metrics import by_situation, distinct, summary
from rlhf.evaluation.statistics import both_orders, wilson, win_rate


def test_a_against_a_is_one_half():
    outcomes = both_orders(lambda i, a, b: 0.5 if a == b else 1.0, ["x"] * 20, ["x"] * 20)
    found = win_rate(outcomes)
    assert found.rate == 0.5 and found.ties == 20 and found.low < 0.5 < found.high


def test_a_judge_that_always_takes_the_first_is_unmasked():
    assert set(both_orders(lambda i, a, b: 1.0, list("abc"), list("def"))) == {0.5}


def test_a_clear_winner_has_an_interval_above_one_half():
    found = win_rate([1.0] * 90 + [0.0] * 10)
    assert found.rate == 0.9 and 0.8 < found.low < 0.9 < found.high < 1.0
    assert win_rate([1.0] * 50).low > 0.9 and win_rate([1.0] * 50).high > 0.999


def test_no_outcomes_is_an_error():
    with pytest.raises(ValueError, match="at least one prompt"):
        win_rate([])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, truth, hits = random.Random(0), 0.6, 0
    for trial in range(200):
        found = win_rate([float(rng.random() < truth) for _ in range(100)], seed=trial, resamples=500)
        hits += found.low <= truth <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_wilson_against_the_textbook():
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)


def test_metrics_by_hand():
    assert distinct(["a b a b", "a b"]) == 2 / 4
    samples = [
        {"reply": "a b", "length": 3, "ended": True, "gold": 1.0, "facts": {"situation": "kind"}},
        {"reply": "a c", "length": 5, "ended": False, "gold": 3.0, "facts": {"situation": "safe"}},
    ]
    assert summary(samples) == {"length": 4.0, "eos_rate": 0.5, "distinct_2": 1.0, "gold_score": 2.0}
    assert by_situation(samples, "gold") == {"kind": 1.0, "safe": 3.0}
