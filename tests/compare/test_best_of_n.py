"""Best-of-n from one pool of samples: the estimator against every subset, and its KL against the sampled one."""

from itertools import combinations

import numpy as np
import pytest

from rlhf.compare.estimators import best_of_n, best_of_n_kl, best_of_n_weights


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_is_the_mean_over_all_subsets(n, tied):
    """A tie is broken by chance, so each of the best of a subset counts its share."""
    rng = np.random.default_rng(n)
    scores, gold = rng.normal(size=7), rng.normal(size=7)
    if tied:
        scores = scores.round(0)
    expected = []
    for chosen in combinations(range(7), n):
        best = [i for i in chosen if scores[i] == max(scores[j] for j in chosen)]
        expected.append(np.mean([gold[i] for i in best]))
    assert best_of_n(scores[None], gold[None], n)[0] == pytest.approx(np.mean(expected))
    assert best_of_n_weights(scores, n).sum() == pytest.approx(1)


def test_a_pool_of_a_hundred_stays_exact():
    scores = np.arange(100.0)
    assert best_of_n(scores[None], scores[None], 100)[0] == 99
    assert best_of_n(scores[None], scores[None], 50)[0] == pytest.approx(50 * 101 / 51 - 1)  # mean of a maximum


def test_the_kl_is_that_of_the_best_of_n_distribution():
    """On m equally likely replies without ties, best-of-n with replacement has density (k/m)^n - ((k-1)/m)^n."""
    m = 20_000
    for n, published in ((1, 0.0), (4, 0.636), (16, 1.835), (64, 3.17)):
        k = np.arange(1, m + 1)
        density = (k / m) ** n - ((k - 1) / m) ** n
        kept = density > 0
        kl = (density[kept] * np.log(density[kept] * m)).sum()
        assert best_of_n_kl(n) == pytest.approx(kl, abs=2e-3)
        assert best_of_n_kl(n) == pytest.approx(published, abs=5e-3)


def test_impossible_requests_are_refused():
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n = {n} cannot be drawn from 3 samples; allowed: 1 to 3"):
            best_of_n_weights(np.arange(3.0), n)
    with pytest.raises(ValueError, match="not a number: sample 1"):
        best_of_n_weights(np.array([0.0, np.nan, 1.0]), 2)
