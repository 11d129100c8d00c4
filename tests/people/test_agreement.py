"""Agreement equals a published example and an independent package, and what is planted is found."""

import random

import numpy as np
import pytest

from rlhf.feedback.schema import Judgement
from rlhf.people.agreement import alpha, alpha_of, disagreement, figures, lines, pairwise, position_bias

# Krippendorff 2011, section C: four observers, twelve units, values missing
N = float("nan")
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)


@pytest.mark.parametrize(
    ("level", "published", "package"), [("nominal", 0.743, 0.743421052631579), ("ordinal", 0.815, 0.8153875037548814)]
)
def test_alpha_equals_the_published_example_and_the_package_krippendorff(level, published, package):
    """The second numbers are of krippendorff 0.9.0 on the same table."""
    assert alpha(PUBLISHED, level) == pytest.approx(published, abs=5e-4)
    assert alpha(PUBLISHED, level) == pytest.approx(package, abs=1e-6)


@pytest.mark.parametrize(("level", "package"), [("nominal", 0.4433569346105789), ("ordinal", 0.2561586841239999)])
def test_alpha_of_a_larger_table_equals_the_package(level, package):
    drawn = np.random.default_rng(5)
    base = drawn.integers(0, 4, size=40)
    rows = [np.where(drawn.random(40) < 0.3, drawn.integers(0, 4, size=40), base) for _ in range(3)]
    table = np.array(rows).astype(float)
    table[drawn.random(table.shape) < 0.2] = N
    assert alpha(table, level) == pytest.approx(package, abs=1e-6)


def people(items, agree, seed=1, k=4, bias=0.0):
    """Two people who give an item the same order with probability `agree`, and else one of their own; with probability `bias` the reply
    shown first is called best."""
    drawn, found = random.Random(seed), []
    for item in range(items):
        true = drawn.sample(range(k), k)
        for name in ("ann", "bob"):
            order = drawn.sample(range(k), k)
            ranks = true if drawn.random() < agree else drawn.sample(range(k), k)
            shown = [ranks[reply] for reply in order]
            if drawn.random() < bias:
                shown[0] = -1
            found.append(Judgement(item, name, order, shown, milliseconds=1000 if name == "ann" else 3000))
    return found


def test_alpha_of_rankings_has_an_interval_that_holds_the_truth():
    whole, none = alpha_of(people(100, 1.0)), alpha_of(people(400, 0.0))
    assert whole and none and whole.value == whole.low == whole.high == 1.0 and whole.items == 100
    assert none.low < 0 < none.high and none.high - none.low < 0.2
    covered = 0
    for seed in range(40):
        found = alpha_of(people(100, 0.6, seed), seed=seed)
        assert found
        covered += found.low < 0.36 < found.high  # both keep to the order with probability 0.6 * 0.6
    assert covered >= 34  # of 40, at 95%
    assert alpha_of(people(5, 1.0)[::2]) is None  # nobody saw what another saw


def test_a_position_bias_of_a_tenth_is_found_and_none_is_not():
    biased, fair = position_bias(people(1500, 0.5, bias=0.1)), position_bias(people(1500, 0.5))
    assert biased and biased.mean == pytest.approx(0.1 * 0.75, abs=0.03) and biased.low > 0 and biased.p < 0.01
    assert fair and fair.low < 0 < fair.high and fair.p > 0.05
    ties = [Judgement(item, "ann", [1, 2, 3, 4], [0, 0, 1, 1]) for item in range(3)]
    assert position_bias(ties).mean == 0.25  # half of the best place, where one in four is fair
    assert position_bias([Judgement(1, "ann", [1, 2], outcome="skipped")]) is None


def test_who_disagrees_is_named():
    found = people(40, 1.0)
    found += [Judgement(one.item, "cy", one.shown, [3 - rank for rank in one.ranks]) for one in found[::2]]
    assert pairwise(found) == {("ann", "bob"): (1.0, 40), ("ann", "cy"): (0.0, 40), ("bob", "cy"): (0.0, 40)}
    rates = disagreement(found)
    assert rates["cy"] == (1.0, 40) and rates["ann"] == rates["bob"] == (0.5, 40)  # the others cancel out: all ties
    told = figures([*found, Judgement(1, "ann", [1, 2], [0, 1], undone=1.0)])
    assert told["seconds"] == {"ann": 1.0, "bob": 3.0} and told["undone"] == 1
    assert told["judgements"] == {"ann": 40, "bob": 40, "cy": 40} and told["outcomes"]["ranked"] == 120
    text = "\n".join(lines(found))
    assert "cy: 40 judgements, differs from the others on 100% of the pairs of 40 prompts" in text
    assert "ann and bob agree on 100% of the pairs of 40 prompts" in text and "bob: 40 judgements" in text
