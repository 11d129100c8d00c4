"""The law of over-optimization: known coefficients come back, its peak is where the curve turns, and chosen gold flatters."""

import numpy as np
import pytest

from rlhf.compare.estimators import choose_checkpoint, fit_law

KL = np.linspace(0, 40, 60)


def curve(kind: str, alpha: float, beta: float) -> np.ndarray:
    d = np.sqrt(KL)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(d * (alpha - beta * (d if kind == "best-of-n" else np.log(d))))


@pytest.mark.parametrize("kind, alpha, beta", [("best-of-n", 1.2, 0.2), ("rl", 0.9, 0.5), ("rl", 0.3, 0.25)])
def test_known_coefficients_come_back(kind, alpha, beta):
    gold = curve(kind, alpha, beta)
    exact = fit_law(KL, gold, kind)
    assert (exact.alpha, exact.beta) == pytest.approx((alpha, beta)) and exact.residual < 1e-9
    assert exact.peak is not None and np.sqrt(KL)[gold.argmax()] == pytest.approx(exact.peak, abs=0.15)
    d = np.linspace(0.01, 20, 4000)
    assert d[exact(d).argmax()] == pytest.approx(exact.peak, abs=0.01)
    noisy = fit_law(KL, gold + np.random.default_rng(0).normal(0, 0.1, len(KL)), kind)
    assert (noisy.alpha, noisy.beta) == pytest.approx((alpha, beta), abs=0.07) and 0.05 < noisy.residual < 0.15


@pytest.mark.parametrize("kind", ["best-of-n", "rl"])
def test_the_other_law_fits_worse_and_a_curve_that_rises_has_no_peak(kind):
    other = "rl" if kind == "best-of-n" else "best-of-n"
    gold = curve(kind, 1.2, 0.2)
    assert fit_law(KL, gold, other).residual > 0.02
    assert fit_law(KL, np.sqrt(KL) * (1 + 0.01 * KL), kind).peak is None


def test_too_little_to_fit_is_refused():
    with pytest.raises(ValueError, match="needs 3 different KLs above 0; these are"):
        fit_law(np.array([0.0, 1.0, 1.0, 4.0]), np.zeros(4), "rl")
    with pytest.raises(ValueError, match="not a number"):
        fit_law(np.array([1.0, 2.0, 3.0]), np.array([0.0, np.nan, 1.0]), "rl")


def test_the_best_checkpoint_is_reported_on_prompts_that_did_not_choose_it():
    rng = np.random.default_rng(1)
    flattered, honest = np.array([choose_checkpoint(rng.normal(size=(20, 100)))[1:] for _ in range(200)]).mean(axis=0)
    assert flattered > 0.2 and abs(honest) < 0.03, (
        "twenty equal checkpoints: the best looks good only where it was chosen"
    )
    assert choose_checkpoint(np.array([[0.0, 9.0], [1.0, 2.0]])) == (1, 1.0, 2.0)
