"""`dataset=feedback`: what people said as rankings, pairs, thumbs and demonstrations, and a ledger of what became of every word."""

import pytest

from rlhf.data import columns, sources
from rlhf.data.prepare import prepare
from rlhf.data.tokens import Renderer
from rlhf.errors import DataError, Refusal
from rlhf.feedback.rankings import accord, agreement, mean_ranks, said, thumbed
from rlhf.feedback.schema import Judgement, Reply
from rlhf.feedback.store import Store
from rlhf.runs import record
from tests.data.templates import templates, tokenizer_of

TEXTS = ("yes.", "no.", "well.")


@pytest.fixture
def stage_of(compose_stage):
    return lambda *words: compose_stage("dataset=feedback", "run.recipe=mine", *words)


@pytest.fixture
def store(tmp_path):
    """Sixty items of three replies, of whom nobody has judged any."""
    with Store(tmp_path / "runs/mine/feedback.sqlite") as store, store.transaction():
        for number in range(60):
            ask = [{"role": "user", "content": f"question {number}"}]
            store.add(ask, {"number": str(number)}, "one", [Reply(text, "a/sft") for text in TEXTS])
    with Store(tmp_path / "runs/mine/feedback.sqlite") as store:
        yield store


def judge(store, item, annotator, ranks=(), **more):
    """`ranks` are those of the replies as they were added; they were shown in the reverse order."""
    ids = [reply.id for reply in store.items()[item - 1].replies]
    return store.judge(Judgement(item, annotator, ids[::-1], list(ranks)[::-1], **more))


def prepared(stage):
    renderer = Renderer(tokenizer_of(*templates()["Yi"]), plain=False)
    return prepare(stage, renderer, renderer)


def read(stage, split="train", kind="pairs"):
    return [row for row in columns.read(stage.dataset, split, kind).rows if row.bad is None]


def test_the_ledger_says_what_became_of_every_judgement(store, stage_of):
    with store.transaction():
        for item in range(1, 61):
            judge(store, item, "ann", [0, 1, 1])  # a tie: two pairs, and not three
        for item in range(1, 31):
            judge(store, item, "bob", outcome="skipped" if item % 2 else "all bad", better="Of course.")
        for item in range(31, 41):
            judge(store, item, "cy", [0, 1, 2])
            store.undo("cy")
    stage = stage_of("method=dpo", "method.start_from=null", "dataset.splits.test=null")
    told = prepared(stage).ledger
    whole = {name: told["train"][name] + told["eval"][name] for name in ("read", "kept", "ties", "rankings")}
    assert whole == {"read": 100, "kept": 120, "ties": 60, "rankings": 60}
    dropped = [told[role]["dropped"].get(why, 0) for why in ("skipped", "all bad", "undone") for role in told]
    assert dropped[0] + dropped[1] == dropped[2] + dropped[3] == 15 and dropped[4] + dropped[5] == 10
    assert told["train"]["read_as"] == "rankings with ranks" and told["eval"]["in_train"] == 0

    written = prepared(stage_of("method=sft", "dataset.splits.test=null")).ledger
    kept = [written[role]["kept"] for role in written]
    assert sum(kept) == 30 and all(kept) and written["train"]["read_as"] == "prompts and completions with label"
    assert sum(written[role]["dropped"]["nothing written by hand"] for role in written) == 70


def test_kto_learns_every_thumb_and_what_rankings_say_of_a_reply(store, stage_of):
    ids = {item.id: [reply.id for reply in item.replies] for item in store.items()}
    with store.transaction():
        for item in range(1, 41):
            store.thumb(ids[item][item % 3], "ann", item % 2 == 0)
        for item in range(31, 51):
            judge(store, item, "bob", [0, 1, 2])  # the second of three is neither
        for item in range(51, 55):
            judge(store, item, "bob", outcome="skipped", better="Of course.")
            judge(store, item, "cy", outcome="all bad")
    stage = stage_of("method=kto", "method.start_from=null", "dataset.splits.test=null", "dataset.options.held_out=0.3")
    data = prepared(stage)
    told = data.ledger
    whole = {name: sum(told[role][name] for role in ("train", "eval")) for name in ("read", "kept", "ties")}
    assert whole == {"read": 40 + 20 + 8, "kept": 40 + 40 + 4, "ties": 20} and told["eval"]["in_train"] == 0
    assert sum(told[role]["dropped"].get("all bad", 0) for role in told) == 4
    assert all(set(told[role]["dropped"]) <= {"all bad"} and told[role]["kept"] > 8 for role in told)
    assert sum(map(sum, (data.train["label"], data.eval["label"]))) == 20 + 20 + 4
    assert told["train"]["thumbs"]["up"] == sum(data.train["label"]) and told["train"]["read_as"] == "thumbs"

    alone = [f"dataset.columns.{role}=null" for role in ("ranking", "ranks")]
    kept = prepared(stage_of("method=kto", *alone, "dataset.splits.test=null", "dataset.options.held_out=0.3")).ledger
    assert sum(told["kept"] for told in kept.values()) == 40 + 4

    def dropped(*words):
        ledger = prepared(stage_of(*words, "dataset.splits.test=null", "dataset.options.held_out=0.3")).ledger
        return {
            why: sum(told["dropped"].get(why, 0) for told in ledger.values())
            for told in ledger.values()
            for why in told["dropped"]
        }

    assert dropped("method=dpo", "method.start_from=null") == {"a thumb": 40, "skipped": 4, "all bad": 4}
    assert dropped("method=sft") == {
        "nothing written by hand": 24,
        "disliked": 20,
    }  # a reply with a thumb up is one to say


def test_thumbs_of_several_people_are_kept_apart_combined_or_held_to_agreement(store, stage_of):
    first, second, third = (store.items()[0].replies[place].id for place in range(3))
    cast = {first: [True, True, False], second: [True, False], third: [False]}
    for reply, ups in cast.items():
        for annotator, up in zip(("ann", "bob", "cy"), ups, strict=False):
            store.thumb(reply, annotator, not up)
            store.thumb(reply, annotator, up)  # replaces it

    def found(**options):
        return [(one.text, one.up, one.why) for one in thumbed(store, **options)]

    texts = ["yes."] * 3 + ["no."] * 2 + ["well."]
    assert found() == [(text, up, "") for text, up in zip(texts, sum(cast.values(), []), strict=True)]
    assert [(up, why) for _, up, why in found(together=True)] == [
        (True, ""),
        *[(True, "combined with another thumb")] * 2,
        *[(False, "as many up as down")] * 2,
        (False, ""),
    ]
    assert [why for *_, why in found(least=0.3)] == ["", "", "", *["below the agreement"] * 2, ""]  # 1 pair in 3 agrees
    stage = stage_of("method=kto", "dataset.options.annotators=together", "dataset.options.held_out=0")
    rows = columns.read(stage.dataset, "train", "thumbs")
    assert [row.values["label"] for row in rows.rows if isinstance(row.values["label"], bool)] == [True, False]


def test_a_prompt_is_in_one_split_whatever_comes_later(store, stage_of):
    stage = stage_of("method=dpo", "dataset.options.held_out=0.3")
    judge(store, 1, "ann", [0, 1, 2])

    def splits():
        return [{row.values["prompt"] for row in read(stage, split)} for split in ("train", "held_out")]

    (first,) = set.union(*splits())
    where = splits().index({first})
    with store.transaction():
        for item in range(2, 61):
            judge(store, item, "ann", [0, 1, 2])
            judge(store, item, "bob", [2, 1, 0])
    train, held_out = splits()
    assert first in (train, held_out)[where] and not train & held_out and len(train | held_out) == 60
    assert 8 <= len(held_out) <= 28
    rows = read(stage, "prompts", "prompts")
    assert {row.values["prompt"] for row in rows} == held_out and len(rows) == len(held_out)
    assert all(set(row.values) == {"prompt", "facts"} for row in rows)


def test_rankings_of_several_people_are_kept_apart_combined_or_held_to_agreement(store, stage_of):
    for annotator, ranks in (("ann", [0, 1, 2]), ("bob", [0, 2, 1]), ("cy", [0, 0, 1])):
        judge(store, 1, annotator, ranks)
    judge(store, 2, "ann", [0, 1, 2])
    judge(store, 2, "bob", [2, 1, 0])
    judge(store, 3, "ann", [2, 1, 0])

    def found(**options):
        return [(one.ranks, one.why) for one in said(store, **options)]

    apart = [[0, 1, 2], [0, 2, 1], [0, 0, 1], [0, 1, 2], [2, 1, 0], [2, 1, 0]]
    assert found() == [(ranks, "") for ranks in apart]
    combined = found(together=True)
    assert [why for _, why in combined] == [
        "",
        *["combined with another ranking"] * 2,
        "",
        "combined with another ranking",
        "",
    ]
    assert combined[0][0] == pytest.approx([1 / 6, 7 / 6, 5 / 3])  # middle ranks 0, 0, 1/2; 1, 2, 1/2; 2, 1, 2
    assert combined[3][0] == [1, 1, 1]  # who contradict each other leave ties
    least = [why for _, why in found(least=0.5)]
    assert least == ["", "", "", *["below the agreement"] * 2, ""]
    stage = stage_of("method=dpo", "dataset.options.annotators=together", "dataset.options.held_out=0")
    assert [row.values["ranks"] for row in read(stage) if isinstance(row.values["ranks"], list)] == [
        combined[index][0] for index in (0, 3, 5)
    ]


def test_agreement_counts_pairs():
    a, b, tied = {1: 0, 2: 1, 3: 2}, {1: 0, 2: 2, 3: 1}, {1: 0, 2: 0, 3: 1}
    assert (agreement(a, a), agreement(a, b), agreement(a, tied)) == (1.0, pytest.approx(2 / 3), pytest.approx(5 / 6))
    assert accord([a, b, tied]) == pytest.approx((2 / 3 + 5 / 6 + 1 / 2) / 3)
    assert mean_ranks([{1: 5, 2: 5, 3: 9}]) == {1: 0.5, 2: 0.5, 3: 2.0}


def test_the_fingerprint_follows_what_was_said_and_not_where_it_lies(store, stage_of, tmp_path):
    stage = stage_of("method=dpo")
    seen = [record.inputs(stage)["data"]]
    for change in (
        lambda: judge(store, 1, "ann", [0, 1, 2]),
        lambda: judge(store, 1, "bob", [0, 1, 2]),
        lambda: store.undo("bob"),
        lambda: judge(store, 1, "bob", [0, 2, 1]),
        lambda: store.thumb(1, "ann", True),
        lambda: store.thumb(1, "ann", False),
    ):
        change()
        seen.append(record.inputs(stage)["data"])
    assert len(set(seen)) == 7
    store.add([{"role": "user", "content": "new"}], None, "two", [Reply("a.", "a/sft"), Reply("b.", "a/sft")])
    assert record.inputs(stage)["data"] == seen[-1]  # nobody has judged it
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert record.inputs(stage_of("method=dpo", f"run.root={tmp_path}/moved")) == record.inputs(stage) | {
        "data": seen[-1]
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dataset.options.heldout=0.2", "did you mean held_out"),
        ("dataset.options.held_out=2", "a share from 0 to 1"),
        ("dataset.options.agreement=high", "a share from 0 to 1"),
        ("dataset.options.annotators=mixed", "allowed: apart, together"),
        ("dataset.splits.train=test", "no split of feedback"),
    ],
)
def test_what_cannot_be_read_is_refused(store, stage_of, words, says):
    with pytest.raises(Refusal, match=says):
        read(stage := stage_of("method=dpo", words), stage.dataset.splits.train)


def test_a_store_that_is_not_there_names_the_command(stage_of):
    with pytest.raises(DataError, match=r"no feedback is there\n  fix: python src/collect.py"):
        sources.open(stage_of("method=dpo").dataset, "train").read()
