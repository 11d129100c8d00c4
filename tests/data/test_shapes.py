"""Public shapes of rows, read as they are by the two presets for local files: what is asked, what is learned, what is refused."""

import json

import pytest

from rlhf.data import columns, contract
from rlhf.data.rows import BadRow
from rlhf.errors import DataError

ASK, SAY = {"role": "user", "content": "When?"}, {"role": "assistant", "content": "At nine."}
NO = {"role": "assistant", "content": "Go away."}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"day": 1}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL, TOOLS = (
    {"role": "tool", "content": "9:00"},
    [{"type": "function", "function": {"name": "find", "parameters": {}}}],
)
SYSTEM = {"role": "system", "content": "Be brief."}
GPT, HUMAN = {"from": "gpt", "value": "At nine."}, {"from": "human", "value": "When?"}


def parts(role, *texts, **more):
    return {"role": role, "content": [{"type": "text", "value": said} for said in texts], **more}


def read(compose_stage, tmp_path, preset, rows, kind=None, *settings, suffix=".jsonl", text=None):
    """The settled dataset, how it is read, and what each row gives."""
    file = tmp_path / f"rows{suffix}"
    file.write_text(text or "".join(json.dumps(row) + "\n" for row in rows))
    dataset = compose_stage(f"dataset=local_{preset}", f"dataset.path={file}", "method=sft", *settings).dataset
    kind = kind or preset
    found = columns.read(dataset, "train", kind)
    make = {"demonstrations": contract.dialogue, "prompts": contract.prompt}.get(kind)
    given = [make(found.dataset, row) if make else [*contract.pairs(found.dataset, row)] for row in found.rows]
    return found, given


# name: the row, how it is read, the turns (the last of them learned)
DEMONSTRATIONS = {
    "messages": ({"messages": [ASK, SAY]}, "dialogues", [ASK, SAY]),
    "developer": ({"messages": [{**SYSTEM, "role": "developer"}, ASK, SAY]}, "dialogues", [SYSTEM, ASK, SAY]),
    "ShareGPT": ({"conversations": [HUMAN, GPT]}, "ShareGPT dialogues", [ASK, SAY]),
    "ShareGPT with system": (
        {"conversations": [HUMAN, GPT], "system": "Be brief."},
        "ShareGPT dialogues with system",
        [SYSTEM, ASK, SAY],
    ),
    "Alpaca": ({"instruction": "When?", "input": "", "output": "At nine."}, "Alpaca with context", [ASK, SAY]),
    "Alpaca with all": (
        {
            "instruction": "a",
            "input": "b",
            "output": "At nine.",
            "system": "Be brief.",
            "history": [["When?", "Soon."]],
        },
        "Alpaca with context, history, system",
        [SYSTEM, ASK, {**SAY, "content": "Soon."}, {"role": "user", "content": "a\n\nb"}, SAY],
    ),
    "question and answer": ({"question": "When?", "answer": "At nine."}, "prompts and completions", [ASK, SAY]),
    "prompt and completion": ({"prompt": "When?", "completion": "At nine."}, "prompts and completions", [ASK, SAY]),
    "messages on both sides": ({"prompt": [ASK], "completion": [SAY]}, "prompts and completions", [ASK, SAY]),
    "the completion repeats the prompt": (
        {"prompt": "When?", "response": [ASK, SAY]},
        "prompts and completions",
        [ASK, SAY],
    ),
    "the completion repeats the prompt without its system turn": (
        {"prompt": [SYSTEM, ASK], "response": [ASK, SAY]},
        "prompts and completions",
        [SYSTEM, ASK, SAY],
    ),
    "calls beside a prompt": (
        {"prompt": [ASK], "completion": [CALLS, TOOL, SAY], "tools": TOOLS},
        "prompts and completions with tools",
        [ASK, CALLS, TOOL, SAY],
    ),
    "calls in ShareGPT": (
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "find", "arguments": {"day": 1}}'},
                {"from": "observation", "value": "9:00"},
                GPT,
            ],
            "tools": json.dumps([TOOLS[0]["function"]]),
        },
        "ShareGPT dialogues with tools",
        [ASK, CALLS, TOOL, SAY],
    ),
    "arguments as JSON": (
        {
            "messages": [
                ASK,
                {**CALLS, "content": None, "tool_calls": [{"function": {"name": "find", "arguments": '{"day": 1}'}}]},
                TOOL,
                SAY,
            ]
        },
        "dialogues",
        [ASK, CALLS, TOOL, SAY],
    ),
    "reasoning": (
        {"messages": [ASK, {**SAY, "thinking": "It opens then."}]},
        "dialogues",
        [ASK, {**SAY, "reasoning_content": "It opens then."}],
    ),
    "weights": (
        {"messages": [ASK, {**NO, "weight": 0}, ASK, {**SAY, "weight": 1}]},
        "dialogues",
        [ASK, {**NO, "learn": False}, ASK, SAY],
    ),
    "parts with weights": (
        {"messages": [parts("user", "When?", loss_weight=0.0), parts("assistant", "At ", "nine.", loss_weight=1.0)]},
        "dialogues",
        [ASK, SAY],
    ),
    "parts that think": (
        {
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "text": "At nine."}],
                },
            ]
        },
        "dialogues",
        [ASK, {**SAY, "reasoning_content": "Hm."}],
    ),
    "JSON of a user": (
        {"prompt": '[{"role": 7}]', "completion": "At nine."},
        "prompts and completions",
        [{**ASK, "content": '[{"role": 7}]'}, SAY],
    ),
    "a thumb up": ({"messages": [ASK, SAY], "label": True}, "dialogues with label", [ASK, SAY]),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_of_every_shape(compose_stage, tmp_path, name):
    row, words, turns = DEMONSTRATIONS[name]
    found, (given,) = read(compose_stage, tmp_path, "demonstrations", [row])
    assert (found.shape, given.messages) == (words, turns)
    assert (given.tools == TOOLS) == ("tools" in row)
    _, (asked,) = read(compose_stage, tmp_path, "demonstrations", [row], "prompts")
    last = max(i for i, turn in enumerate(turns) if turn["role"] in ("user", "tool")) + 1
    if "completion" not in row or TOOL not in turns:  # a prompt alone is asked as it stands
        assert asked.messages == turns[:last]


def test_options_of_the_template_come_along(compose_stage, tmp_path):
    row = {"messages": [ASK, SAY], "chat_template_kwargs": {"enable_thinking": False, "effort": None}}
    found, (given,) = read(compose_stage, tmp_path, "demonstrations", [row])
    assert found.shape == "dialogues with chat_template_kwargs" and given.options == {"enable_thinking": False}


# name: the row, how it is read, prompt, chosen, rejected
PAIRS = {
    "texts": ({"prompt": "When?", "chosen": "At nine.", "rejected": "Go away."}, "pairs", [ASK], [SAY], [NO]),
    "a question": ({"question": "When?", "chosen": "At nine.", "rejected": "Go away."}, "pairs", [ASK], [SAY], [NO]),
    "Alpaca": (
        {"instruction": "When?", "input": "", "chosen": "At nine.", "rejected": "Go away."},
        "pairs with context",
        [ASK],
        [SAY],
        [NO],
    ),
    "messages": ({"prompt": [SYSTEM, ASK], "chosen": [SAY], "rejected": [NO]}, "pairs", [SYSTEM, ASK], [SAY], [NO]),
    "whole": ({"chosen": [ASK, SAY], "rejected": [ASK, NO]}, "pairs of whole dialogues", [ASK], [SAY], [NO]),
    "whole beside a prompt": (
        {"prompt": "When?", "chosen": [SYSTEM, ASK, SAY], "rejected": [SYSTEM, ASK, NO]},
        "pairs",
        [SYSTEM, ASK],
        [SAY],
        [NO],
    ),
    "whole beside a prompt that has a system turn": (
        {"prompt": [SYSTEM, ASK], "chosen": [ASK, SAY], "rejected": [ASK, NO]},
        "pairs",
        [SYSTEM, ASK],
        [SAY],
        [NO],
    ),
    "whole, of several turns": (
        {"prompt": "When?", "chosen": [ASK, SAY, ASK, SAY], "rejected": [ASK, SAY, ASK, NO]},
        "pairs",
        [ASK, SAY, ASK],
        [SAY],
        [NO],
    ),
    "ShareGPT": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "Go away."}},
        "ShareGPT pairs",
        [ASK],
        [SAY],
        [NO],
    ),
    "named messages": (
        {
            "chosen_messages": [parts("user", "When?"), parts("assistant", "At nine.", loss_weight=1.0)],
            "rejected_messages": [ASK, NO],
        },
        "pairs of whole dialogues",
        [ASK],
        [SAY],
        [NO],
    ),
    "they part after a call": (
        {"chosen": [ASK, CALLS, TOOL, SAY], "rejected": [ASK, CALLS, TOOL, NO], "tools": TOOLS},
        "pairs of whole dialogues with tools",
        [ASK, CALLS, TOOL],
        [SAY],
        [NO],
    ),
    "they part at a call": (
        {"prompt": [ASK], "chosen": [CALLS, TOOL, SAY], "rejected": [NO], "tools": TOOLS},
        "pairs with tools",
        [ASK],
        [CALLS, TOOL, SAY],
        [NO],
    ),
    "a margin": (
        {"prompt": "When?", "chosen": "At nine.", "rejected": "Go away.", "margin": 2},
        "pairs with margin",
        [ASK],
        [SAY],
        [NO],
    ),
    "transcripts": (
        {"chosen": "\n\nHuman: When?\n\nAssistant: At nine.", "rejected": "\n\nHuman: When?\n\nAssistant: Go away."},
        "pairs of transcripts",
        [ASK],
        [SAY],
        [NO],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_every_shape(compose_stage, tmp_path, name):
    row, words, asked, chosen, rejected = PAIRS[name]
    found, ((pair,),) = read(compose_stage, tmp_path, "pairs", [row])
    assert found.shape == words
    assert (pair.prompt.messages, pair.chosen, pair.rejected) == (asked, chosen, rejected)
    assert (pair.prompt.tools == TOOLS) == ("tools" in row) and pair.margin == row.get("margin")
    _, (prompt,) = read(compose_stage, tmp_path, "pairs", [row], "prompts")
    assert prompt.messages == asked


def test_texts_that_begin_alike_are_pairs_in_plain_format(compose_stage, tmp_path):
    rows = [{"chosen": "Beautiful is better than ugly.", "rejected": "Beautiful is better than the moon."}]
    with pytest.raises(DataError, match="fix: dataset.format=plain"):
        read(compose_stage, tmp_path, "pairs", rows)
    _, ((pair,),) = read(compose_stage, tmp_path, "pairs", rows, None, "dataset.format=plain")
    said = [pair.prompt.messages[0]["content"], pair.chosen[0]["content"], pair.rejected[0]["content"]]
    assert said == ["Beautiful is better than", " ugly.", " the moon."]


@pytest.mark.parametrize(("role", "numbers"), [("ranks", [1, 0, 2]), ("scores", [5.0, 9.5, 1])])
def test_a_ranking_says_whether_low_or_high_is_best(compose_stage, tmp_path, role, numbers):
    rows = [{"prompt": "When?", "responses": ["b", "a", "c"], role: numbers}]
    found, (pairs,) = read(compose_stage, tmp_path, "pairs", rows)
    assert found.shape == f"rankings with {role}"
    assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in pairs] == [("a", "b"), ("b", "c"), ("a", "c")]
    with pytest.raises(DataError, match=r"fix: dataset.columns.ranks=null \+dataset.columns.scores=scores"):
        settings = ("+dataset.columns.ranking=responses", "+dataset.columns.ranks=scores")
        read(compose_stage, tmp_path, "pairs", [{"prompt": "p", "responses": [], "scores": []}], None, *settings)


@pytest.mark.parametrize("how", [json.dumps, repr])
def test_turns_in_a_cell_of_a_csv_file(compose_stage, tmp_path, how):
    cells = [how([ASK, SAY]), how([ASK, NO])]
    text = "chosen,rejected\n" + ",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n"
    _, ((pair,),) = read(compose_stage, tmp_path, "pairs", [], suffix=".csv", text=text)
    assert (pair.prompt.messages, pair.chosen, pair.rejected) == ([ASK], [SAY], [NO])


def test_two_shapes_that_fit_are_told_with_what_decides(compose_stage, tmp_path):
    rows = [{"question": "When?", "answer": "At nine.", "response": "Soon."}]
    with pytest.raises(DataError) as caught:
        read(compose_stage, tmp_path, "demonstrations", rows)
    said = str(caught.value)
    assert "can be read in 2 ways" in said
    for reply, learned in (("answer", "At nine."), ("response", "Soon.")):
        fix = f"dataset.columns.messages=null +dataset.columns.prompt=question +dataset.columns.completion={reply}"
        assert fix in said
        pasted = [word.strip("'") for word in fix.split()]
        _, (given,) = read(compose_stage, tmp_path, "demonstrations", rows, None, *pasted)
        assert given.messages == [ASK, {**SAY, "content": learned}]


def test_own_names_beside_a_preset(compose_stage, tmp_path):
    rows = [{"frage": "When?", "antwort": "At nine."}]
    for mapping in (
        ["dataset.columns={prompt: frage, completion: antwort}"],
        ["dataset.columns.messages=null", "+dataset.columns.prompt=frage", "+dataset.columns.completion=antwort"],
    ):
        _, (given,) = read(compose_stage, tmp_path, "demonstrations", rows, None, *mapping)
        assert given.messages == [ASK, SAY]
    with pytest.raises(DataError, match=r"dataset.columns.prompt=fragen: not a column of .*; did you mean frage\?"):
        read(
            compose_stage,
            tmp_path,
            "demonstrations",
            rows,
            None,
            "dataset.columns={prompt: fragen, completion: antwort}",
        )
    rows = [{"messages": [ASK, SAY], "label": False}]
    _, (given,) = read(compose_stage, tmp_path, "demonstrations", rows, None, "+dataset.columns.label=null")
    assert given.messages == [ASK, SAY], "null: that column is not read"


# what no setting reads is refused with the right fix
REFUSED = {
    "texts": ("demonstrations", {"text": "a"}, "fix: dataset.format=plain +dataset.columns.text=text"),
    "thumbs": ("pairs", {"prompt": "a", "completion": "b", "label": True}, "fix: method=kto"),
    "steps": (
        "pairs",
        {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
        "which no method here learns from",
    ),
    "a class": ("demonstrations", {"sentence": "a", "label": 3}, "dataset.columns.messages=messages: not a column"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_no_such_rows_is_refused_in_words_that_fit(compose_stage, tmp_path, name):
    preset, row, words = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read(compose_stage, tmp_path, preset, [row])
    assert words in str(caught.value)


# one bad row among good ones: its reason
GOOD = {"demonstrations": {"messages": [ASK, SAY]}, "pairs": {"prompt": "When?", "chosen": "a", "rejected": "b"}}
BAD = [
    ("demonstrations", {"messages": None}, "not messages"),
    ("demonstrations", {"messages": []}, "wrong role order"),
    ("demonstrations", {"messages": [SAY, ASK, SAY]}, "wrong role order"),
    ("demonstrations", {"messages": [ASK, ASK, SAY]}, "wrong role order"),
    ("demonstrations", {"messages": [ASK, {**SAY, "content": 7}]}, "not messages"),
    ("demonstrations", {"messages": [ASK, {**SAY, "content": "\ud800"}]}, "half a character"),
    ("demonstrations", {"messages": [ASK, {**SAY, "weight": 0.5}]}, "weight of a turn"),
    ("demonstrations", {"messages": [{**ASK, "weight": 1}, SAY]}, "weight of a turn"),
    ("demonstrations", {"messages": [ASK, {**SAY, "weight": 1, "train": False}]}, "weight of a turn"),
    ("demonstrations", {"messages": [ASK, SAY], "label": 0.0}, "disliked"),
    ("pairs", {"prompt": "When?", "chosen": "a", "rejected": "b", "margin": ""}, "not a margin"),
    ("demonstrations", {"messages": [ASK, {**SAY, "images": ["x.png"]}]}, "images of a turn"),
    ("demonstrations", {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, SAY]}, "not text"),
    ("demonstrations", {"messages": [ASK, SAY], "images": ["x.png"]}, "images of a row"),
    ("pairs", {"prompt": "When?", "chosen": "a", "rejected": "b", "image": {"bytes": "x"}}, "image of a row"),
    (
        "demonstrations",
        {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [{"name": 1}]}]},
        "not a tool call",
    ),
    ("demonstrations", {"messages": [ASK, SAY], "system": 5}, "not text"),
    ("demonstrations", {"messages": [SYSTEM, ASK, SAY], "system": "Be long."}, "two system turns"),
    ("demonstrations", {"messages": [ASK, SAY], "tools": "none"}, "not tools"),
    ("demonstrations", {"messages": [ASK, SAY], "label": False}, "disliked"),
    ("demonstrations", {}, "no such column"),
    ("pairs", {"prompt": [], "chosen": "a", "rejected": "b"}, "wrong role order"),
    ("pairs", {"prompt": None, "chosen": "a", "rejected": "b"}, "not messages"),
    ("pairs", {"prompt": 5, "chosen": "a", "rejected": "b"}, "not messages"),
    ("pairs", {"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
    (
        "pairs",
        {"prompt": [SYSTEM, ASK], "chosen": [{**SYSTEM, "content": "Be long."}, ASK, SAY], "rejected": [ASK, NO]},
        "two system turns",
    ),
    ("pairs", {"prompt": "Who?", "chosen": [ASK, SAY], "rejected": [ASK, NO]}, "prompts differ"),
    ("pairs", {"prompt": "When?", "chosen": [ASK, SAY, ASK, SAY], "rejected": [ASK, NO]}, "prompts differ"),
    ("pairs", {"prompt": "When?", "chosen": "a", "rejected": "b", "margin": float("nan")}, "not a margin"),
]


@pytest.mark.parametrize(("preset", "row", "reason"), BAD)
def test_one_bad_row_is_named_and_never_more(compose_stage, tmp_path, preset, row, reason):
    more = {
        key: value
        for key, value in {"system": "Be brief.", "tools": TOOLS, "label": True, "margin": 1}.items()
        if key in row
    }
    good = GOOD[preset] | more
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (good, row, good)))
    dataset = compose_stage(f"dataset=local_{preset}", f"dataset.path={file}").dataset
    found = columns.read(dataset, "train", preset)
    seen = []
    for each in found.rows:
        try:
            made = (
                contract.dialogue(found.dataset, each)
                if preset == "demonstrations"
                else [*contract.pairs(found.dataset, each)]
            )
            seen.append(bool(made))
        except BadRow as bad:
            seen.append(bad.reason)
    assert seen == [True, reason, True]


@pytest.mark.parametrize("numbers", [[0, float("nan"), 1], [0, float("inf"), 1], [0, None, 1], [0, 1], "012", None])
@pytest.mark.parametrize("role", ["ranks", "scores", "truth"])
def test_a_number_that_is_none_orders_nothing(compose_stage, tmp_path, role, numbers):
    good = {"prompt": "p", "replies": ["a", "b", "c"], role: [0, 1, 2]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (good, good | {role: numbers})))
    settings = ["+dataset.columns.ranking=replies", f"+dataset.columns.{role}={role}"]
    dataset = compose_stage("dataset=local_pairs", f"dataset.path={file}", *settings).dataset
    found = columns.read(dataset, "train", "pairs")
    rows = list(found.rows)
    assert len(list(contract.pairs(found.dataset, rows[0]))) == 3
    with pytest.raises(BadRow, match="must hold 3 numbers"):
        list(contract.pairs(found.dataset, rows[1]))


@pytest.mark.parametrize("pictures", [[], None, ["x.png"]])
def test_words_are_learned_without_pictures_where_there_are_none_or_somebody_says_so(compose_stage, tmp_path, pictures):
    row = {"messages": [ASK, SAY], "images": pictures}
    said = ["+dataset.columns.images=null"] if pictures else []
    found, (given,) = read(compose_stage, tmp_path, "demonstrations", [row], None, *said)
    assert given.messages == [ASK, SAY] and found.shape == "dialogues"
    if pictures:
        with pytest.raises(
            DataError, match=r"rows.jsonl:1: the row has images=.*\n.*\n  fix: .*\+dataset.columns.images=null"
        ):
            read(compose_stage, tmp_path, "demonstrations", [row, row])


def test_where_all_rows_break_alike_dropping_them_is_no_fix(compose_stage, tmp_path):
    rows = [{"messages": [SAY, ASK, SAY]}] * 3
    with pytest.raises(DataError) as caught:
        read(compose_stage, tmp_path, "demonstrations", rows)
    assert "and so are all of the first 3 rows" in str(caught.value) and "bad_rows=drop" not in str(caught.value)
