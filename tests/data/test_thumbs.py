"""Thumbs up and down for single replies: every label that people write, what pairs and rankings say of each reply, every refusal."""

import json

import pytest

from rlhf.data import columns, contract
from rlhf.data.prepare import prepare
from rlhf.data.rows import BadRow
from rlhf.data.tokens import Renderer
from rlhf.errors import DataError
from rlhf.output.console import balance
from rlhf.preflight.plan import count_rows
from rlhf.support.feedback.generator import CURT, thumbs
from tests.data.templates import templates, tokenizer_of

ASK, SAY = {"role": "user", "content": "When?"}, {"role": "assistant", "content": "At nine."}
ROW = {"prompt": "When?", "completion": "At nine."}
LOCAL = ("method=kto", "method.start_from=null", "model=smollm2_135m", "dataset=local_thumbs")


@pytest.fixture
def stage(compose_stage, tmp_path):
    """`stage(rows, *settings)`: a stage of kto on a file of these rows."""

    def make(rows, *settings, suffix=".jsonl"):
        file = tmp_path / f"rows{suffix}"
        if suffix == ".csv":
            file.write_text("prompt,completion,label\n" + "".join(f"When?,At nine.,{row['label']}\n" for row in rows))
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return compose_stage(*LOCAL, f"dataset.path={file}", *settings)

    return make


def given(stage):
    """How rows are read, and the thumbs of each."""
    found = columns.read(stage.dataset, "train", "thumbs")
    return found.shape, [list(contract.thumbs(found.dataset, row)) for row in found.rows]


@pytest.fixture(scope="module")
def renderer():
    return Renderer(tokenizer_of(*templates()["Yi"]), plain=False)


LABELS = [
    {True: True, False: False, "TRUE": True, "up": True, "Down": False, "👍": True, "👎": False},
    {1: True, 0: False, "1": True, "0": False, "1.0": True, "0.0": False},
    {1: True, -1: False, "+1": True, "-1": False, "-1.0": False},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("labels", LABELS)
def test_every_label_that_people_write(stage, labels, suffix):
    words, found = given(stage([{**ROW, "label": label} for label in labels], suffix=suffix))
    assert words == "thumbs" and [thumb.liked for (thumb,) in found] == list(labels.values())
    assert all((thumb.prompt.messages, thumb.reply) == ([ASK], [SAY]) for (thumb,) in found)


WRONG = [None, "", 2, 0.5, "good", [True], "1.5", "null"]


def test_any_other_label_is_refused_with_its_line(stage, renderer):
    settings = stage([{**ROW, "label": label} for label in (True, *WRONG)])
    found = columns.read(settings.dataset, "train", "thumbs")
    _, *rows = found.rows
    for row, label in zip(rows, WRONG, strict=True):
        with pytest.raises(BadRow, match="label must be true or false, found ") as caught:
            list(contract.thumbs(found.dataset, row))
        assert "allowed: true, 1, +1, up" in str(caught.value), label
    with pytest.raises(DataError) as stopped:
        prepare(settings, renderer, renderer)
    assert "rows.jsonl:2: label must be true or false, found " in str(stopped.value)
    assert str(stopped.value).endswith("fix: mend the row, or dataset.bad_rows=drop to leave such rows out")


SHAPES = {
    "messages": ({"messages": [ASK, SAY], "label": False}, "thumbs", [(SAY, False)]),
    "conversational": ({"prompt": [ASK], "completion": [SAY], "label": True}, "thumbs", [(SAY, True)]),
    "other names": ({"question": "When?", "answer": "At nine.", "thumb": "down"}, "thumbs", [(SAY, False)]),
    "a pair": (
        {"prompt": "When?", "chosen": "At nine.", "rejected": "No."},
        "pairs",
        [(SAY, True), ({**SAY, "content": "No."}, False)],
    ),
    "whole dialogues": (
        {"chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": "No."}]},
        "pairs of whole dialogues",
        [(SAY, True), ({**SAY, "content": "No."}, False)],
    ),
    "a ranking": (
        {"prompt": "When?", "responses": ["No.", "At nine.", "Soon."], "ranks": [2, 0, 1]},
        "rankings with ranks",
        [(SAY, True), ({**SAY, "content": "No."}, False)],  # the second of three wins one and loses one
    ),
    "a ranking with ties": (
        {"prompt": "When?", "responses": ["At nine.", "Soon.", "No."], "scores": [3, 3, 1]},
        "rankings with scores",
        [(SAY, True), ({**SAY, "content": "Soon."}, True), ({**SAY, "content": "No."}, False)],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_each_shape_says_of_a_reply(stage, name):
    row, words, expected = SHAPES[name]
    shape, (found,) = given(stage([row]))
    assert shape == words
    assert {(one.reply[0]["content"], one.liked) for one in found} == {(turn["content"], up) for turn, up in expected}
    assert all(one.prompt.messages == [ASK] for one in found) and len(found) == len(expected)
    assert count_rows(stage([row])) == len(expected)


REFUSED = [
    ([{"prompt": "a", "completion": "b"}], "dataset.columns.label=label: not a column of"),
    ([{**ROW, "lable": True}], "did you mean lable"),
    ([{**ROW, "label": 1}, {**ROW, "label": 0}, {**ROW, "label": -1}], "holds 0 and -1, of which one is no thumb down"),
    ([{**ROW, "label": "yes"}], "label must be true or false, found 'yes'"),
    ([{**ROW, "label": True}] * 3, "all 3 thumbs to train on are up"),
    ([{**ROW, "label": False}] * 3, "all 3 thumbs to train on are down"),
    ([{**ROW, "completion": " ", "label": True}, {**ROW, "label": False}], "rows.jsonl:1: "),
    ([{"messages": [SAY], "label": True}, {"messages": [ASK, SAY], "label": False}], "rows.jsonl:1: "),
]


@pytest.mark.parametrize(("rows", "words"), REFUSED)
def test_bad_rows_are_refused_in_words_that_fit(stage, renderer, rows, words):
    with pytest.raises(DataError) as caught:
        prepare(stage(rows), renderer, renderer)
    assert words in str(caught.value), caught.value


def test_one_kind_of_thumbs_names_the_method_that_learns_from_it(stage, renderer):
    for label, fix in ((True, "fix: method=sft "), (False, "fix: rows with thumbs up too")):
        with pytest.raises(DataError, match=fix):
            prepare(stage([{**ROW, "label": label}] * 2), renderer, renderer)


def test_the_ids_are_those_of_sft_and_dpo(stage, compose_stage, renderer):
    rows = [{**ROW, "label": True}, {"prompt": "When?", "completion": "No.", "label": False}]
    data = prepare(stage(rows), renderer, renderer)
    up, down = (row["prompt_ids"] + row["completion_ids"] for row in data.train)
    file = stage(rows).dataset.path
    sft = ("method=sft", "model=smollm2_135m", "dataset=local_demonstrations", f"dataset.path={file}")
    told = prepare(compose_stage(*sft, "+dataset.columns.label=null"), renderer, renderer).train
    assert [row["input_ids"] for row in told] == [up, down]
    assert [len(row["labels"]) - row["labels"].count(-100) for row in told] == [
        len(row["completion_ids"]) for row in data.train
    ]
    pairs = stage([{"prompt": "When?", "chosen": "At nine.", "rejected": "No."}]).dataset.path  # in the same file
    dpo = compose_stage("method=dpo", "model=smollm2_135m", "dataset=local_pairs", f"dataset.path={pairs}")
    (pair,) = prepare(dpo, renderer, renderer).train
    assert [pair["prompt_ids"] + pair[f"{side}_ids"] for side in ("chosen", "rejected")] == [up, down]
    assert [row["label"] for row in data.train] == [True, False]
    assert data.ledger["train"]["thumbs"] == {"up": 1, "down": 1} and data.shown.endswith("«")


def test_a_completion_is_judged_as_a_whole_and_a_long_one_is_left_out(stage, renderer):
    tool = [{"role": "assistant", "content": "Let me see."}, {"role": "tool", "content": "9:00"}, SAY]
    found = columns.read(stage([{"prompt": [ASK], "completion": tool, "label": True}]).dataset, "train", "thumbs")
    (row,) = found.rows
    (thumb,) = contract.thumbs(found.dataset, row)
    assert [turn["role"] for turn in thumb.reply] == ["assistant", "tool", "assistant"]
    rows = [{**ROW, "label": True}, {**ROW, "label": False}, {**ROW, "completion": "so " * 200, "label": True}]
    ledger = prepare(stage(rows, "dataset.max_length=64"), renderer, renderer).ledger["train"]
    assert (ledger["kept"], ledger["dropped"]) == (2, {"too long": 1})


@pytest.mark.parametrize(
    ("up", "down", "settings", "said"),
    [
        (100, 100, [], None),
        (133, 100, [], None),
        (50, 100, [], "method.args.desirable_weight=2.3"),
        (200, 100, [], "method.args.undesirable_weight=1.7"),
        (50, 100, ["method.args.desirable_weight=2.3"], None),
        (100, 100, ["method.args.desirable_weight=null"], None),
    ],
)
def test_the_header_says_the_weight_that_balances(stage, capsys, up, down, settings, said):
    balance(stage([{**ROW, "label": True}], *settings), up, down)
    shown = capsys.readouterr().out
    assert f"thumbs   {up} up" in shown and f"{down} down" in shown
    assert ("warning" in shown) == (said is not None) and (said or "") in shown


def test_generated_thumbs_ask_nothing_twice_and_err_as_often_as_they_say():
    rows = thumbs(1000, seed=0)
    assert len({row["prompt"] for row in rows}) == 1000
    wrong = [row["label"] != (row["true_score"] > CURT) for row in rows]
    assert abs(sum(wrong) / 1000 - 0.3) < 0.045  # more than three standard deviations
    assert not any(row["label"] != (row["true_score"] > CURT) for row in thumbs(100, seed=0, noise=0.0))
    assert rows == thumbs(1000, seed=0) != thumbs(1000, seed=1)
    assert not {row["prompt"] for row in thumbs(200, seed=0, held_out=True)} & {row["prompt"] for row in rows}
    for noise in (-0.1, 0.6):
        with pytest.raises(ValueError, match="is not a rate of wrong thumbs"):
            thumbs(10, seed=0, noise=noise)
