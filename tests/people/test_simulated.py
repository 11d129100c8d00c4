"""Simulated people judge as often as they are asked, err at their rates, and do not judge twice."""

import pytest

from rlhf.errors import DataError
from rlhf.feedback.schema import Reply
from rlhf.feedback.store import Store
from rlhf.people import simulated
from rlhf.support.annotator import score
from rlhf.support.generator import rankings
from rlhf.support.ranking import levels


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as store, store.transaction():
        for row in rankings(300, seed=3):
            ask = [{"role": "user", "content": row["prompt"]}]
            store.add(ask, row["facts"], "one", [Reply(text, "a/sft") for text in row["replies"]])
    with Store(tmp_path / "s.sqlite") as store:
        yield store


def test_people_err_at_their_rates_and_see_replies_in_an_order_of_their_own(store):
    assert simulated.judge(store, shared=1.0) == 900 and simulated.judge(store, shared=1.0) == 0
    truth = {reply.id: score(item.facts, reply.text) for item in store.items() for reply in item.replies}
    turned = {name: [0, 0] for name in simulated.PEOPLE}
    first = []
    for one in store.judgements():
        true, ranks = levels([truth[reply] for reply in one.shown]), one.ranks
        pairs = [(i, j) for i in range(len(ranks)) for j in range(i) if true[i] != true[j]]
        turned[one.annotator][0] += sum((ranks[i] < ranks[j]) != (true[i] < true[j]) for i, j in pairs)
        turned[one.annotator][1] += len(pairs)
        first.append(sorted(one.shown).index(one.shown[0]))
        assert all((ranks[i] == ranks[j]) == (true[i] == true[j]) for i in range(len(ranks)) for j in range(i))
    for name, noise in simulated.PEOPLE.items():
        assert turned[name][0] / turned[name][1] == pytest.approx(noise, abs=0.02)
    assert all(first.count(place) == pytest.approx(225, abs=60) for place in range(4))


def test_labels_are_what_was_asked_for_and_another_call_goes_on(store):
    assert simulated.judge(store, labels=120) == 120
    before = store.judgements()
    rest = simulated.judge(store)
    both = store.judgements()
    assert both[:120] == before and len(both) == 120 + rest
    shared = sum(sum(one.item == item.id for one in both) == 3 for item in store.items())
    assert len(both) == 300 + 2 * shared and 40 <= shared <= 80  # a fifth of 300


def test_a_prompt_without_facts_is_told(store):
    store.add([{"role": "user", "content": "who are you"}], None, "two", [Reply("me.", "a"), Reply("you.", "a")])
    with pytest.raises(DataError, match=r"'who are you' has no facts to judge by"):
        simulated.judge(store)
    assert store.judgements() == []
