"""Equal KL: between checkpoints by interpolation in sqrt(KL), beyond them not at all."""

import numpy as np
import pytest

from rlhf.compare.estimators import at_equal_kl


def test_between_two_checkpoints_the_gold_is_linear_in_the_root_of_the_kl():
    kl, gold = np.array([0.0, 1.0, 9.0]), np.array([1.0, 2.0, 4.0])
    found = at_equal_kl(kl, gold, np.array([0.0, 0.25, 4.0, 9.0])) @ gold
    assert found == pytest.approx([1.0, 1.5, 3.0, 4.0])


def test_a_beaten_checkpoint_is_not_on_the_frontier_and_the_end_is_level():
    kl, gold = np.array([9.0, 0.0, 4.0, 1.0, 16.0]), np.array([4.0, 1.0, 1.5, 2.0, 3.0])
    weights = at_equal_kl(kl, gold, np.array([4.0, 16.0]))
    assert weights[0] == pytest.approx([0.5, 0, 0, 0.5, 0]) and weights[1] == pytest.approx([1, 0, 0, 0, 0])


def test_nothing_is_extrapolated():
    weights = at_equal_kl(np.array([1.0, 4.0]), np.array([1.0, 2.0]), np.array([0.5, 2.0, 5.0]))
    assert np.isnan(weights).all(axis=1).tolist() == [True, False, True]


def test_prompts_that_did_not_choose_the_checkpoints_are_not_flattered():
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(300):
        kl, gold = rng.uniform(0, 9, 20), rng.normal(size=(20, 100))
        kl[0] = 0.0
        weights = at_equal_kl(kl, gold[:, ::2].mean(axis=1), np.array([6.0]))
        gaps.append([(weights @ gold[:, ::2]).mean(), (weights @ gold[:, 1::2]).mean()])
    same, other = np.nanmean(gaps, axis=0)
    assert same > 0.15 and abs(other) < 0.03
