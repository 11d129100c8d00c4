"""Win rates: ties, both orders, and intervals that hold what they promise."""

import numpy as np
import pytest

from rlhf.evaluation.metrics import by_situation, correlation, distinct, summary
from rlhf.evaluation.statistics import estimate, holm, judgements, prompts_to_settle, verdict, wilson, win_rate


def test_a_against_a_is_one_half():
    outcomes = judgements(lambda i, a, b: 0.5 if a == b else 1.0, ["x"] * 20, ["x"] * 20).outcomes
    found = win_rate(outcomes)
    assert found.rate == 0.5 and found.ties == 20 and found.low < 0.5 < found.high


def test_a_judge_that_always_takes_the_first_is_unmasked():
    found = judgements(lambda i, a, b: 1.0, list("abc"), list("def"))
    assert set(found.outcomes) == {0.5} and found.flip_rate == 1.0
    fair = judgements(lambda i, a, b: float(a < b), list("abc"), list("def"))
    assert fair.outcomes == [1.0] * 3 and fair.flip_rate == 0.0


def test_an_abstention_is_a_tie_and_counted():
    found = judgements(lambda i, a, b: None if i == 1 else float(a < b), list("abc"), list("def"))
    assert found.outcomes == [1.0, 0.5, 1.0] and found.abstained == 1 and found.flip_rate == 0.0


def test_a_clear_winner_has_an_interval_above_one_half():
    found = win_rate([1.0] * 90 + [0.0] * 10)
    assert found.rate == 0.9 and 0.8 < found.low < 0.9 < found.high < 1.0
    assert win_rate([1.0] * 50).low > 0.9 and win_rate([1.0] * 50).high > 0.999


def test_no_outcomes_is_an_error():
    with pytest.raises(ValueError, match="at least one prompt"):
        win_rate([])


@pytest.mark.parametrize("seeds, seed_effect", [(1, 0.0), (3, 0.0), (3, 0.3), (5, 0.3)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, seed_effect):
    """500 simulated comparisons: prompts differ in difficulty, seeds in skill, close calls are ties."""

    def outcomes(rng, seeds, prompts):
        skill, difficulty = rng.normal(0, seed_effect, (seeds, 1)), rng.normal(0, 0.8, (1, prompts))
        margin = 0.4 + skill + difficulty + rng.logistic(size=(seeds, prompts))
        return np.where(abs(margin) < 0.3, 0.5, margin > 0)

    truth = outcomes(np.random.default_rng(10_000), 1000, 1000).mean()
    hits = 0
    for trial in range(500):
        found = win_rate(outcomes(np.random.default_rng(trial), seeds, 100), seed=trial, resamples=2000)
        hits += found.low <= truth <= found.high
    print(f"{seeds} seeds that differ by {seed_effect}: {hits / 5:.1f}% of the intervals cover {truth:.3f}")
    assert 0.93 <= hits / 500 <= 0.97


def test_seeds_that_differ_widen_the_interval_and_prompts_alone_cannot_settle_it():
    rng = np.random.default_rng(0)
    alike = (rng.random((3, 200)) < 0.6).astype(float)
    apart = (rng.random((3, 200)) < np.array([[0.3], [0.6], [0.9]])).astype(float)
    narrow, wide = win_rate(alike), win_rate(apart)
    assert (wide.high - wide.low) > 4 * (narrow.high - narrow.low)
    assert prompts_to_settle(wide) is None and "train more of them" in verdict(wide, "ppo", "dpo")
    assert win_rate(apart[1]).low > 0.5, "one seed alone would look decided"


def test_the_same_prompts_under_more_seeds_are_no_new_prompts():
    outcomes = (np.random.default_rng(1).random(100) < 0.6).astype(float)
    one, three = win_rate(outcomes), win_rate([outcomes] * 3)
    assert (three.low, three.high, three.p) == (one.low, one.high, one.p)
    assert three.wins == 3 * one.wins


def test_the_prompts_said_to_settle_it_do_so_in_four_of_five_cases():
    found = win_rate([1.0] * 56 + [0.0] * 44)
    said = verdict(found, "ppo", "dpo")
    enough = prompts_to_settle(found)
    assert "ppo and dpo are not distinguishable (0.560" in said and f"about {enough:,} prompts" in said
    rng = np.random.default_rng(2)
    settled = [win_rate((rng.random(enough) < 0.56).astype(float), resamples=400).low > 0.5 for _ in range(200)]
    assert 0.72 <= np.mean(settled) <= 0.88, (enough, np.mean(settled))
    assert "no difference was seen" in verdict(win_rate([0.5] * 50), "ppo", "dpo")


def test_a_verdict_names_the_winner_on_either_side_unless_the_correction_takes_it_back():
    found = win_rate([1.0] * 65 + [0.0] * 35)
    assert verdict(found, "ppo", "dpo").startswith("ppo is better than dpo (0.650")
    assert verdict(win_rate([0.0] * 65 + [1.0] * 35), "ppo", "dpo").startswith("dpo is better than ppo (0.350")
    assert "not distinguishable" in verdict(found, "ppo", "dpo", p=0.06)
    assert found.p < 0.05 and win_rate([1.0] * 5).p == pytest.approx(2 / 2**5) and win_rate([1.0]).p == 1.0


def test_p_values_are_below_five_percent_in_five_percent_of_comparisons_without_a_difference():
    rng = np.random.default_rng(3)
    p = [win_rate((rng.random(150) < 0.5).astype(float), resamples=500).p for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.08


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="seed 1, prompt 2 is nan"):
        estimate([[1.0, 0.0, 1.0], [0.0, 1.0, float("nan")]])
    with pytest.raises(ValueError, match="answered 7 on prompt 0; allowed: 0 to 1, or None"):
        judgements(lambda i, a, b: 7, ["x"], ["y"])


def test_wilson_against_the_textbook():
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)


def test_metrics_by_hand():
    assert distinct([["a", "b", "a", "b"], ["a", "b"]]) == 2 / 4
    samples = [
        {"reply": "a b", "length": 3, "ended": True, "gold": 1.0, "facts": {"situation": "kind"}},
        {"reply": "a c", "length": 5, "ended": False, "gold": 3.0, "facts": {"situation": "safe"}},
    ]
    assert summary(samples) == {"length": 4.0, "eos_rate": 0.5, "distinct_2": 1.0, "gold_score": 2.0}
    assert by_situation(samples, "gold") == {"kind": 1.0, "safe": 3.0}


def test_correlation_by_hand():
    assert correlation([1.0, 2.0, 3.0], [2.0, 4.0, 7.0]) == pytest.approx(5 / (2 * 114 / 9) ** 0.5)
    assert correlation([1.0, 1.0], [1.0, 2.0]) == correlation([1.0], [2.0]) == 0.0
