"""The noisy annotator: right without noise, wrong at the rate asked for, tied where the truth is."""

import math
import random
from itertools import combinations

import pytest

from rlhf.support.annotator import prefer
from rlhf.support.generator import rankings
from rlhf.support.ranking import levels, noisy_ranks, temperature


def disagreement(rows: list[dict]) -> float:
    """The share of strictly ordered pairs that the ranks turn around."""
    turned = strict = 0
    for row in rows:
        true = levels(row["true_scores"])
        for i, j in combinations(range(len(true)), 2):
            if true[i] != true[j]:
                strict += 1
                turned += (true[i] < true[j]) != (row["ranks"][i] < row["ranks"][j])
    return turned / strict


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1, 0.2, 0.35, 0.5])
def test_noise_is_the_measured_disagreement(noise):
    rows = rankings(700, 0, noise=noise)
    assert disagreement(rows) == pytest.approx(noise, abs=0.02 if noise else 0.0)


def test_noise_turns_close_pairs_more_often_than_far_ones():
    close, far = (
        disagreement([{"true_scores": s, "ranks": r}]) for s, r in (([1.0, 0.5], [1, 0]), ([3.5, -1.0], [0, 1]))
    )
    assert (close, far) == (1.0, 0.0)
    rng = random.Random(0)
    rates = [
        sum(noisy_ranks(scores, 0.7, rng)[0] for _ in range(4000)) / 4000
        for scores in ([1.0, 0.5], [2.0, 0.5], [3.5, 0.5])
    ]
    expected = [1 / (1 + math.exp(gap / 0.7)) for gap in (0.5, 1.5, 3.0)]
    assert rates == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("noise", [-0.1, 0.6])
def test_noise_that_is_no_rate_is_refused(noise):
    with pytest.raises(ValueError, match=f"noise = {noise}"):
        temperature([1.0], noise)


def test_true_ties_stay_ties_and_ranks_have_no_holes():
    assert levels([3.5, 1.75, 1.75, -1.0]) == [0, 1, 1, 2]
    assert levels([0.0, 0.1, 0.25, 1.0]) == [1, 1, 1, 0]
    ties = 0
    for row in rankings(700, 1, noise=0.2):
        assert sorted(set(row["ranks"])) == list(range(len(set(row["ranks"]))))
        true = levels(row["true_scores"])
        for i, j in combinations(range(4), 2):
            assert (true[i] == true[j]) == (row["ranks"][i] == row["ranks"][j])
            ties += true[i] == true[j]
    assert 0.01 < ties / (6 * 700) < 0.2


def test_ranks_without_noise_agree_with_prefer():
    for row in rankings(200, 2, noise=0.0):
        assert len(set(row["replies"])) == 4
        for i, j in combinations(range(4), 2):
            if row["ranks"][i] != row["ranks"][j]:
                better = row["ranks"][i] < row["ranks"][j]
                assert prefer(row["facts"], row["replies"][i], row["replies"][j]) == float(better)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_k_replies(k):
    assert all(len(row["replies"]) == len(row["ranks"]) == len(row["true_scores"]) == k for row in rankings(50, 0, k=k))
