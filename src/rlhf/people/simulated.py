"""Simulated people: the embedded annotator of `support` as several persons who err at rates of their own."""

import random
from collections.abc import Sequence
from itertools import islice

from rlhf.errors import DataError
from rlhf.feedback.schema import Item, Judgement
from rlhf.feedback.store import Store
from rlhf.support.annotator import score
from rlhf.support.ranking import gaps, noisy_ranks, temperature

# name: the expected share of strictly ordered pairs that this person turns around; together 0.1, as in `support_rankings`
PEOPLE = {"simulated-1": 0.05, "simulated-2": 0.1, "simulated-3": 0.15}
TOGETHER = 100  # judgements that are kept at once: nobody is told of one before


def judge(store: Store, labels: int | None = None, shared: float = 0.2, seed: int = 1) -> int:
    """Judges what is in the store, at most `labels` times, and returns how often.

    Each person gets a part of the items, and a share `shared` of them goes to all, which agreement is measured on. An item is shown in
    an order of its own to each; who judged an item before does not do it again.

    Raises:
        DataError: an item whose prompt has no facts, by which the annotator judges.
    """
    items = store.items()
    done = {(one.item, one.annotator) for one in store.judgements() if one.undone is None}
    truths = {item.id: _truth(store, item) for item in items}
    strict = [gap for scores in truths.values() for gap in gaps(scores)]
    heat = {name: temperature(strict, noise) for name, noise in PEOPLE.items()}
    asked = [(item, name) for item in items for name in _who(item, shared, seed) if (item.id, name) not in done]
    rest = iter(asked[:labels])
    while some := list(islice(rest, TOGETHER)):
        with store.transaction():
            for item, name in some:
                store.judge(_judgement(item, name, truths[item.id], heat[name], seed))
    return len(asked[:labels])


def _truth(store: Store, item: Item) -> list[float]:
    if not item.facts:
        asked = item.messages[-1]["content"]
        fix = "people judge it, or collect without prompts=, whose customers have facts"
        raise DataError(f"{store.path}, item {item.id}: {asked[:60]!r} has no facts to judge by\n  fix: {fix}")
    return [score(item.facts, reply.text) for reply in item.replies]


def _who(item: Item, shared: float, seed: int) -> Sequence[str]:
    """All people, or the one whose turn it is: by the item alone, so that another call asks the same."""
    drawn = random.Random(f"who/{seed}/{item.id}")
    return list(PEOPLE) if drawn.random() < shared else [drawn.choice(list(PEOPLE))]


def _judgement(item: Item, name: str, truth: list[float], heat: float, seed: int) -> Judgement:
    drawn = random.Random(f"{name}/{seed}/{item.id}/{item.messages}")
    ranks = noisy_ranks(truth, heat, drawn)
    order = drawn.sample(range(len(ranks)), len(ranks))
    return Judgement(item.id, name, [item.replies[i].id for i in order], [ranks[i] for i in order])
