"""The desk: each unshared item goes to one annotator, comes back when nobody judged it, and a judgement that comes twice counts once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rlhf.errors import DataError, Refusal
from rlhf.feedback.schema import Item, Reply
from rlhf.feedback.store import Store
from rlhf.people.desk import HELD, LONGEST, RULES, Desk, named, rules


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "feedback.sqlite") as store:
        with store.transaction():
            for number in range(40):
                replies = [Reply(f"{word} {number}", "a/sft") for word in ("yes", "no", "perhaps")]
                store.add([{"role": "user", "content": f"question {number}"}], None, "one", replies)
        yield store


def take(desk, name) -> Item:
    found = desk.next(name)
    assert found
    return found


def judge(desk, name, item, ranks=(0, 1, 2), **more):
    return desk.judge(name, item.id, list(desk.shown(item, name)), ranks, **more)


def test_everybody_gets_the_shared_items_and_one_each_of_the_others(store):
    desk = Desk(store, 0.3)
    shared = {item.id for item in store.items() if desk.shared(item.id)}
    assert 5 < len(shared) < 20
    seen, names = Counter(), ["ann", "bob", "cy"]
    while names:
        for name in list(names):
            item = desk.next(name)
            if item is None:
                names.remove(name)
                continue
            again = desk.next(name)
            assert again and again.id == item.id  # until it is judged
            judge(desk, name, item)
            seen[item.id] += 1
    assert seen == {item.id: 3 if item.id in shared else 1 for item in store.items()}
    items, said = {item.id: item for item in store.items()}, store.judgements()
    orders = [[reply.id for reply in desk.shown(items[one.item], one.annotator).values()] for one in said]
    assert [one.shown for one in said] == orders != [sorted(order) for order in orders]
    assert Desk(store, 0).shared(7) is False and Desk(store, 1).shared(7) is True


def test_what_is_handed_out_is_nobody_elses_until_it_comes_back(store):
    clock = Clock()
    desk = Desk(store, 0, clock)
    mine = take(desk, "ann")
    other = take(desk, "bob")
    again = Desk(store, 0, clock)  # of another process, or of one that was started again
    third = take(again, "cy")
    assert len({mine.id, other.id, third.id}) == 3 and take(again, "ann").id == mine.id
    clock.now += HELD - 1
    desk.hold(mine.id, "ann")  # still at work
    desk.hold(other.id, "ann")  # not theirs to hold
    clock.now += 2
    assert take(desk, "dan").id == other.id and desk.progress("ann")["away"] == 1
    assert take(desk, "bob").id not in (mine.id, other.id)
    judge(desk, "bob", other)  # who was late: nothing that somebody said is lost
    judge(desk, "dan", other)
    assert len(store.judgements(other.id)) == 2


def test_desks_that_hand_out_at_the_same_time_never_hand_an_item_to_two(store):
    everybody = Barrier(4)

    def work(name):
        with Store(store.path) as own:
            desk, got = Desk(own, 0), []
            while item := desk.next(name):
                if not got:
                    everybody.wait()  # each has one in hand before anybody is done with theirs
                got.append(item.id)
                judge(desk, name, item)
        return got

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(work, ("ann", "bob", "cy", "dan")))
    assert sorted(sum(got, [])) == [item.id for item in store.items()] and all(got)


def test_a_skipped_item_goes_to_another(store):
    desk = Desk(store, 0)
    item = take(desk, "ann")
    judge(desk, "ann", item, (), outcome="skipped")
    assert take(desk, "ann").id != item.id and take(desk, "bob").id == item.id
    judge(desk, "bob", item, (), outcome="all bad")
    assert take(desk, "cy").id != item.id


def test_simulated_people_take_nothing_away_from_people(store):
    desk = Desk(store, 0)
    judge(desk, "simulated-1", take(desk, "simulated-1"))
    assert take(desk, "ann").id == 1


def test_a_judgement_that_comes_twice_counts_once_and_another_word_is_refused(store):
    desk = Desk(store, 0)
    item = take(desk, "ann")
    key = next(iter(desk.shown(item, "ann")))
    said = {"ranks": [2, 0, 0], "better": " at nine ", "tags": {key: ["kind", "brief"], "": []}}
    first = judge(desk, "ann", item, **said, milliseconds=900)
    assert judge(desk, "ann", item, **said | {"ranks": [1, 0, 0]}, milliseconds=4000) == first
    for other in ({"ranks": [0, 1, 2]}, {"better": "at ten"}, {"tags": {}}, {"ranks": (), "outcome": "all bad"}):
        with pytest.raises(Refusal, match="annotator=ann: has judged item 1 already\n  fix: undo"):
            judge(desk, "ann", item, **said | other)
    (kept,) = store.judgements()
    assert (kept.better, kept.milliseconds, kept.ranks) == ("at nine", 900, [1, 0, 0])
    assert [reply.id for reply in desk.shown(item, "ann").values()] == kept.shown
    assert kept.tags == {str(kept.shown[0]): ["brief", "kind"]}


def test_undo_gives_the_item_back_with_what_was_said_once(store):
    desk = Desk(store, 0)
    first = take(desk, "ann")
    judge(desk, "ann", first)
    second = take(desk, "ann")
    judge(desk, "ann", second)
    assert desk.progress("ann") == {"own": 2, "left": 38, "away": 0, "everyone": {"ann": 2}, "last": second.id}
    for _ in range(2):  # the answer was lost
        item, said = desk.undo("ann", second.id)
        assert (item.id, said.ranks) == (second.id, [0, 1, 2]) and desk.progress("ann")["last"] == first.id
    assert take(desk, "bob").id not in (first.id, second.id) and take(desk, "ann").id == second.id
    judge(desk, "ann", second, (2, 1, 0))
    assert [one.undone is None for one in store.judgements()] == [True, False, True]
    with pytest.raises(Refusal, match="item=9: ann has said nothing of it"):
        desk.undo("ann", 9)


def test_the_order_is_each_persons_own_and_tells_nothing(store):
    desk, (item, *rest) = Desk(store), store.items()
    assert list(desk.shown(item, "ann")) == list(desk.shown(item, "ann"))
    first = Counter(
        next(iter(desk.shown(one, name).values())).text.split()[0] for one in [item, *rest] for name in "abcdefgh"
    )
    assert set(first) == {"yes", "no", "perhaps"} and all(70 < count < 150 for count in first.values())  # 107 each
    assert not {str(reply.id) for reply in item.replies} & set(desk.shown(item, "ann"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"item": 99}, "item=99: is not in the store"),
        ({"shown": ["a", "b", "c"]}, "not the replies of item 1 as they were shown"),
        ({"shown": []}, "not the replies"),
        ({"ranks": [0, 1]}, "one for each of 3"),
        ({"ranks": [0, 1, 3]}, "0 to 2, 0 is best"),
        ({"ranks": [0, 1, -1]}, "0 to 2"),
        ({"outcome": "fine", "ranks": []}, "allowed: ranked"),
        ({"tags": {"": ["rude"]}}, "tags=rude: is none\n  allowed: kind, honest"),
        ({"tags": {"x": ["kind"]}}, "not the replies"),
    ],
)
def test_what_is_no_judgement_of_the_item_is_refused(store, wrong, words):
    desk = Desk(store)
    shown = list(desk.shown(store.items(1)[0], "ann"))
    with pytest.raises(Refusal, match=words):
        desk.judge(**{"annotator": "ann", "item": 1, "shown": shown, "ranks": [0, 1, 2], **wrong})
    with pytest.raises(Refusal, match="not the replies"):  # the order of another person
        desk.judge("ann", 1, list(desk.shown(store.items(1)[0], "bob")), [0, 1, 2])
    assert store.judgements() == []


def test_names_have_one_form(store):
    assert named("  Zoe\u0308   B ") == "Zo\u00eb B"
    for bad in ("", "  ", "x" * 41, "a\x00b", "a\u202eb", "\ud800"):
        with pytest.raises(Refusal, match="1 to 40 letters"):
            named(bad)


def test_rules_are_a_text_of_the_team(tmp_path):
    file = tmp_path / "rules.txt"
    assert rules(None) == RULES and "brief" in RULES
    file.write_text(" Be nice.\n")
    assert rules(file) == "Be nice."
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="save it as UTF-8"):
        rules(file)
    file.write_text("x" * (LONGEST + 1))
    with pytest.raises(DataError, match=f"fix: 1 to {LONGEST}"):
        rules(file)
    with pytest.raises(Refusal, match="no such file\n  fix: write the rules"):
        rules(tmp_path / "none")


def test_a_store_without_items_names_the_command_that_fills_it(tmp_path):
    with Store(tmp_path / "mine/feedback.sqlite") as store, pytest.raises(DataError, match="run=mine/sft run.root="):
        Desk(store)
