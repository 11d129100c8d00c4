"""What the judgements and thumbs of a store say: a ranking or a label each, or one an item or reply; for each that says none the reason."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

from rlhf.feedback.schema import Judgement
from rlhf.feedback.store import Store, dumped

Ranks = dict[int, float]  # by the id of a reply; the lowest is best


@dataclass(frozen=True)
class Said:
    """A judgement with what it is of. `why` tells why nobody learns a ranking from it, and is empty where one can: then `ranks` are
    those of `replies`. `better` is a reply written by hand."""

    judgement: int
    messages: list[dict[str, Any]]
    facts: dict[str, str] | None
    replies: list[str]
    ranks: list[float]
    better: str | None
    why: str


def said(store: Store, together: bool = False, least: float | None = None) -> list[Said]:
    """Every judgement in order.

    With `together` the first ranking of an item stands for all, each reply at its mean rank. Rankings of an item that two or more have
    ranked are left out where they agree on less than the share `least` of its pairs; one alone has nobody to disagree with.
    """
    with store.snapshot():
        items, judgements = {item.id: item for item in store.items()}, store.judgements()
    rankings, found = standing(judgements), []
    for judgement in judgements:
        item, ranked = items[judgement.item], rankings.get(judgement.item, {})
        own = ranked.get(judgement.annotator) if judgement.undone is None else None
        why = "undone" if judgement.undone is not None else "" if own is not None else judgement.outcome
        if own is not None and least is not None and len(ranked) > 1 and accord(list(ranked.values())) < least:
            why = "below the agreement"
        elif own is not None and together:
            first = next(iter(ranked))
            why = "" if judgement.annotator == first else "combined with another ranking"
            own = mean_ranks(list(ranked.values()))
        ranks = [] if why or own is None else [own[reply.id] for reply in item.replies]
        texts = [reply.text for reply in item.replies]
        better = judgement.better if judgement.undone is None else None
        found.append(Said(judgement.id, item.messages, item.facts, texts, ranks, better, why))
    return found


@dataclass(frozen=True)
class Thumbed:
    """A thumb with what it is on. `why` tells why nobody learns from it, and is empty where one can."""

    reply: int
    messages: list[dict[str, Any]]
    facts: dict[str, str] | None
    text: str
    up: bool
    why: str


def thumbed(store: Store, together: bool = False, least: float | None = None) -> list[Thumbed]:
    """Every thumb in order; `together` and `least` are those of `said`, for the thumbs on a reply: the first stands for what most say."""
    with store.snapshot():
        items, thumbs = store.items(), store.thumbs()
    places = {reply.id: (item, reply) for item in items for reply in item.replies}
    votes: dict[int, dict[str, bool]] = {}
    for reply, annotator, up in thumbs:
        votes.setdefault(reply, {})[annotator] = up
    found = []
    for reply, annotator, up in thumbs:
        cast, why = list(votes[reply].values()), ""
        pairs, ups = list(combinations(cast, 2)), sum(cast)
        if least is not None and pairs and sum(a == b for a, b in pairs) / len(pairs) < least:
            why = "below the agreement"
        elif together:
            up, tied = 2 * ups > len(cast), 2 * ups == len(cast)
            why = (
                "as many up as down"
                if tied
                else ""
                if annotator == next(iter(votes[reply]))
                else "combined with another thumb"
            )
        item, own = places[reply]
        found.append(Thumbed(reply, item.messages, item.facts, own.text, up, why))
    return found


def standing(judgements: Sequence[Judgement]) -> dict[int, dict[str, Ranks]]:
    """The rankings that were not taken back, by item and annotator."""
    found: dict[int, dict[str, Ranks]] = {}
    for judgement in judgements:
        if judgement.undone is None and judgement.outcome == "ranked":
            ranks = dict(zip(judgement.shown, map(float, judgement.ranks), strict=True))
            found.setdefault(judgement.item, {})[judgement.annotator] = ranks
    return found


def mean_ranks(rankings: Sequence[Ranks]) -> Ranks:
    """The mean over rankings of each reply's middle rank; exact, so that equal means are ties."""
    middle = [{key: _middle(ranks, key) for key in ranks} for ranks in rankings]
    return {key: float(sum(ranks[key] for ranks in middle) / len(middle)) for key in middle[0]}


def _middle(ranks: Ranks, key: int) -> Fraction:
    """How many replies are better, and half of those that tie with it."""
    better, same = (
        sum(rank < ranks[key] for rank in ranks.values()),
        sum(rank == ranks[key] for rank in ranks.values()),
    )
    return Fraction(2 * better + same - 1, 2)


def agreement(a: Ranks, b: Ranks) -> float:
    """The share of pairs of replies on which two rankings agree; a tie agrees half with an order."""
    pairs = list(combinations(a, 2))
    return sum(1 - abs(_order(a, *pair) - _order(b, *pair)) / 2 for pair in pairs) / len(pairs) if pairs else 1.0


def accord(rankings: Sequence[Ranks]) -> float:
    """The mean agreement of each two of several rankings."""
    pairs = list(combinations(rankings, 2))
    return sum(agreement(*pair) for pair in pairs) / len(pairs)


def _order(ranks: Ranks, first: int, second: int) -> int:
    return (ranks[first] > ranks[second]) - (ranks[first] < ranks[second])


def digest(store: Store) -> str:
    """Changes with what anybody has said: judgements and thumbs with their prompts and replies, wherever the store lies and whatever
    numbers it gave them."""
    with store.snapshot():
        items, judgements = {item.id: item for item in store.items()}, store.judgements()
        thumbs = list(zip(thumbed(store), store.thumbs(), strict=True))
    content = hashlib.sha256()
    for one in judgements:
        item, ranks = items[one.item], dict(zip(one.shown, one.ranks, strict=False))
        replies = [(reply.text, ranks.get(reply.id)) for reply in item.replies]
        row = (item.messages, item.facts, replies, one.annotator, one.outcome, one.better, one.undone is None)
        content.update(dumped(row).encode())
    for thumb, (_, annotator, up) in thumbs:
        content.update(dumped((thumb.messages, thumb.facts, thumb.text, annotator, up)).encode())
    return content.hexdigest()
