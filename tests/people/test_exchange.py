"""Judgements go out and come back in each format, and the files of the other programs are read as those write them."""

import json

import pytest

from rlhf.errors import DataError
from rlhf.feedback.schema import Judgement, Reply
from rlhf.feedback.store import Store
from rlhf.people.exchange import taken_in, written

ASK = [{"role": "user", "content": "when do you open"}]


@pytest.fixture
def store(tmp_path):
    """Two items of three replies: four judgements that stand, with ties, a skip and `all bad`, and one that was undone."""
    with Store(tmp_path / "a.sqlite") as store:
        for ask in (ASK, [*ASK, {"role": "assistant", "content": "At nine."}, {"role": "user", "content": "sure"}]):
            store.add(
                ask, {"situation": "brief"}, "one", [Reply(text, "a/sft") for text in ("At nine.", "Yes.", "No.")]
            )
        store.judge(Judgement(1, "ann", [2, 1, 3], [1, 0, 2], better="At nine, always.", milliseconds=1500))
        store.judge(Judgement(1, "bob", [1, 2, 3], [0, 1, 1]))
        store.judge(Judgement(2, "ann", [4, 5, 6], outcome="skipped"))
        store.judge(Judgement(2, "bob", [4, 5, 6], outcome="all bad"))
        store.judge(Judgement(2, "cy", [6, 5, 4], [0, 1, 2]))
        store.undo("cy")
        store.judge(Judgement(2, "cy", [4, 5, 6], [2, 0, 1]))
        yield store


def said(store):
    """What stands, by texts: whoever numbered the replies."""
    items = {item.id: item for item in store.items()}
    found = set()
    for one in store.judgements():
        texts = {reply.id: reply.text for reply in items[one.item].replies}
        ranks = dict(zip((texts[reply] for reply in one.shown), one.ranks, strict=False))
        if one.undone is None:
            found.add((str(items[one.item].messages), one.annotator, one.outcome, str(sorted(ranks.items()))))
    return found


@pytest.mark.parametrize(
    ("form", "lost"),
    [
        ("rankings", {"undone": 1}),
        ("label-studio", {"undone": 1, "all bad": 1}),
        ("argilla", {"undone": 1, "all bad": 1, "skipped": 1, "with ties": 1}),
    ],
)
def test_what_a_format_has_words_for_comes_back(store, tmp_path, form, lost):
    file = tmp_path / "out.json"
    count, left = written(store, file, form)
    assert count == (5 if form == "rankings" else 2) and {why: n for why, n in left.items() if n} == lost
    with Store(tmp_path / "b.sqlite") as other:
        kept, again = 5 - sum(lost.values()) + 1, taken_in
        assert taken_in(other, file, form)[0] == kept
        whole = {row[:1] + row[2:] for row in said(store)} if form == "argilla" else said(store)
        came = {row[:1] + row[2:] for row in said(other)} if form == "argilla" else said(other)
        assert came <= whole and len(came) == kept  # Argilla knows people by numbers
        before = other.judgements()
        assert again(other, file, form) == (0, {"judged by this person already": kept}) and other.judgements() == before
        if form == "rankings":
            first = before[0]
            assert (first.better, first.milliseconds) == ("At nine, always.", 1500) and other.items()[0].facts
    stands = len(store.items())
    taken_in(store, file, form)
    assert len(store.items()) == stands  # replies that are there keep their item


def test_pairs_are_those_that_trl_reads(store, tmp_path):
    file = tmp_path / "pairs.jsonl"
    count, left = written(store, file, "pairs")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert count == len(rows) == 3 + 2 + 3 and (left["ties"], left["skipped"], left["all bad"]) == (1, 1, 1)
    assert rows[0] == {
        "prompt": ASK,
        "chosen": [{"role": "assistant", "content": "At nine."}],
        "rejected": [{"role": "assistant", "content": "Yes."}],
    }
    with Store(tmp_path / "b.sqlite") as other:
        kept, again = taken_in(other, file, "pairs")
        assert kept + again["judged by this person already"] == 8 and kept == 6  # bob's two were ann's too
        assert all(one.annotator == "pairs" and sorted(one.ranks) == [0, 1] for one in other.judgements())
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "when", "chosen": "At nine.", "rejected": "No."}\n')
    with Store(tmp_path / "c.sqlite") as other:
        assert taken_in(other, plain, "pairs")[0] == 1
        assert [reply.text for reply in other.items()[0].replies] == ["At nine.", "No."]


def test_files_of_argilla_and_label_studio_as_those_programs_write_them(tmp_path):
    """The first as `Record.to_dict` of argilla 2, and as its server keeps ranks; the second as the page of the tag Ranker shows it."""
    fields = {"instruction": "when", "reply-1": "At nine.", "reply-2": "No.", "reply-3": "Soon."}
    argilla = [
        {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": None}
        | {"responses": {"note": [{"value": "fine", "user_id": "u"}], "ranking": [{"value": value, "user_id": "u"}]}}
        for value in (
            ["reply-3", "reply-1", "reply-2"],
            [{"value": "reply-1", "rank": 1}, {"value": "reply-2", "rank": 2}, {"value": "reply-3", "rank": 2}],
        )
    ]
    items = [{"id": "blog", "title": "x", "body": "10 tips"}, {"id": "mdn", "title": "y", "body": "Arrows"}]
    studio = [
        {
            "id": 7,
            "data": {"prompt": "how", "items": items},
            "annotations": [
                {"id": 1, "completed_by": who, "was_cancelled": False, "lead_time": 4.288}
                | {
                    "result": [
                        {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": value}}
                    ]
                }
                for who, value in (
                    (1, ["mdn", "blog"]),
                    ({"id": 2, "email": "bob@x.org"}, {"best": ["mdn", "blog"]}),
                    (3, {"best": ["mdn"], "_": ["blog"]}),
                )
            ],
        }
    ]
    for name, content in (("argilla", argilla), ("label-studio", studio)):
        (tmp_path / name).write_text(json.dumps(content))
    with Store(tmp_path / "a.sqlite") as store:
        (tmp_path / "one").write_text(json.dumps(argilla[:1]))
        assert taken_in(store, tmp_path / "one", "argilla") == (1, {})
        assert [row[3] for row in said(store)] == ["[('At nine.', 1), ('No.', 2), ('Soon.', 0)]"]
    with Store(tmp_path / "b.sqlite") as store:
        (tmp_path / "two").write_text(json.dumps(argilla[1:]))
        assert taken_in(store, tmp_path / "two", "argilla") == (1, {})
        assert [row[3] for row in said(store)] == ["[('At nine.', 0), ('No.', 1), ('Soon.', 1)]"]
    with Store(tmp_path / "c.sqlite") as store:
        assert taken_in(store, tmp_path / "label-studio", "label-studio") == (2, {"not every reply was ranked": 1})
        assert {(row[1], row[3]) for row in said(store)} == {
            ("1", "[('10 tips', 1), ('Arrows', 0)]"),
            ("bob@x.org", "[('10 tips', 0), ('Arrows', 0)]"),
        }
        assert store.judgements()[0].milliseconds == 4288


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("rankings", '{"prompt": "a", "replies": ["b", "c"], "ranks": [0]}\n', r"x:1: 1 ranks for 2 replies"),
        ("rankings", '{"prompt": "a", "ranks": [0]}\n', r"x:1: replies is not there"),
        ("pairs", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "same reply"),
        ("argilla", '[{"responses": {}}]', "x, record 1: fields is not there"),
        ("label-studio", '[{"data": {}}]', "x, task 1: items is not there"),
        ("label-studio", "{", "can't be read"),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_kept(tmp_path, form, text, says):
    (tmp_path / "x").write_text(text)
    file = tmp_path / "x"
    if form == "pairs":
        file = file.rename(tmp_path / "x.jsonl")
    with Store(tmp_path / "a.sqlite") as store, pytest.raises(DataError, match=says):
        taken_in(store, file, form)
    with Store(tmp_path / "a.sqlite") as store:
        assert store.items() == [] and store.judgements() == []
