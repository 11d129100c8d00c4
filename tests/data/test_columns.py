"""Mapped columns against the columns there are: every method, role, format and way in, before a row is rendered."""

import json
from collections import Counter
from copy import deepcopy
from itertools import product

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.config import Splits
from rlhf.data.prepare import prepare
from rlhf.data.tokens import Renderer
from rlhf.errors import DataError
from rlhf.models.tokenizer import load_tokenizer

U, A = "user", "assistant"


def _chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


WHOLE = {"chosen": _chat((U, "p"), (A, "good")), "rejected": _chat((U, "p"), (A, "bad"))}
TALK = {"chosen": "Q: p A: good", "rejected": "Q: p A: bad"}
TREE = [
    {"message_id": "0", "parent_id": None, "role": "prompter", "text": "p", "rank": None},
    {"message_id": "1", "parent_id": "0", "role": "assistant", "text": "good", "rank": 0},
    {"message_id": "2", "parent_id": "0", "role": "assistant", "text": "bad", "rank": 1},
]
# format, {role: column}, rows, the methods that they serve
SHAPES = {
    "messages": ("chat", {"messages": "turns"}, [{"turns": _chat((U, "p"), (A, "a"))}], "sft ppo"),
    "completion": (
        "chat",
        {"prompt": "question", "context": "passage", "completion": "answer"},
        [{"question": "p", "passage": "c", "answer": "a"}],
        "sft ppo",
    ),
    "thumbs": (
        "chat",
        {"prompt": "question", "completion": "answer", "label": "liked"},
        [{"question": "p", "answer": "a", "liked": True}],
        "sft kto ppo",
    ),
    "pairs": (
        "chat",
        {"prompt": "question", "chosen": "better", "rejected": "worse"},
        [{"question": "p", "better": "good", "worse": "bad"}],
        "reward dpo kto ppo",
    ),
    "whole pairs": ("chat", {"chosen": "chosen", "rejected": "rejected"}, [WHOLE], "reward dpo kto ppo"),
    "ranking": (
        "plain",
        {"prompt": "question", "ranking": "replies", "ranks": "places", "truth": "scores"},
        [{"question": "p", "replies": ["a", "b"], "places": [0, 1], "scores": [1.0, 0.0]}],
        "reward dpo kto ppo",
    ),
    "text": ("plain", {"text": "body", "prompt": "opening"}, [{"body": "a text", "opening": "a"}], "sft ppo"),
    "transcript": ("transcript", {"messages": "talk"}, [{"talk": "Q: p A: a"}], "sft ppo"),
    "transcripts": ("transcript", {"chosen": "chosen", "rejected": "rejected"}, [TALK], "reward dpo kto ppo"),
    "tree": ("tree", {"prompt": "prompt", "ranking": "replies", "ranks": "ranks"}, TREE, "reward dpo kto ppo"),
}
GENERATED = {"demonstrations": "sft ppo", "rankings": "reward dpo kto ppo", "prompts": "ppo", "text": "sft"}
METHODS = ("sft", "reward", "dpo", "kto", "ppo")


class Unread(Renderer):
    """Fails when a row is rendered."""

    def __init__(self):
        self.plain = False

    def _text(self, messages, reply_follows=False):
        raise AssertionError("rendered before the columns were checked")


def write(folder, suffix, rows, name="train"):
    file = folder / f"{name}{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        cells = [[v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows]
        lines = [",".join('"' + c.replace('"', '""') + '"' for c in line) for line in [list(rows[0]), *cells]]
        file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def refused(compose_stage):
    """`refused(method, columns, group, path=..., ...)`: the message with which the data of a stage is refused."""
    composed = {}

    def message(method, columns, group="local_pairs", **settings):
        if (method, group) not in composed:
            path = [] if group.startswith("support") else ["dataset.path=train.jsonl"]
            composed[method, group] = compose_stage(f"method={method}", f"dataset={group}", *path)
        stage = deepcopy(composed[method, group])
        for key, value in {"columns": columns, **settings}.items():
            setattr(stage.dataset, key, value)
        with pytest.raises(DataError) as caught:
            prepare(stage, Unread(), Unread())
        return str(caught.value)

    return message


def test_every_mapped_column_is_held_against_the_columns_there_are(refused, tmp_path):
    visited = Counter()
    for (name, (form, columns, rows, serves)), suffix in product(SHAPES.items(), (".jsonl", ".csv", ".parquet")):
        if form == "tree" and suffix == ".csv":
            continue  # a cell is never null there
        file = write(tmp_path, suffix, rows)
        settings = {"path": str(file), "format": form, "markers": {"user": "Q:", "assistant": "A:"}}
        for method, role in product(METHODS, columns):
            wrong = columns[role][:-1] + "xx"
            said = refused(method, columns | {role: wrong}, **settings)
            if method not in serves.split():
                assert said.startswith("dataset.columns={") and "\n  allowed: " in said, (name, method, said)
            else:
                there = ", ".join(columns.values()) if form == "tree" else ", ".join(rows[0])
                assert said.startswith(f"dataset.columns.{role}={wrong}: not a column of {file}; did you mean "), said
                assert columns[role] in said.partition("\n")[0] and said.endswith(f"\n  allowed: {there}"), said
            visited[method, role] += 1
    few = {"train": 6, "held_out": 6, "evaluation": 6, "seed": 0}
    for name, serves in GENERATED.items():
        columns = {"text": "text", "prompt": "prompt"} if name == "text" else {"prompt": "prompt"}
        columns |= {"completion": "completion"} if name == "demonstrations" else {}
        columns |= {"ranking": "replies", "ranks": "ranks", "truth": "true_scores"} if name == "rankings" else {}
        for method, role in product(serves.split(), columns):
            said = refused(method, columns | {role: columns[role] + "x"}, f"support_{name}", options=few)
            assert f"dataset.columns.{role}={columns[role]}x: not a column of generator:support/{name}[" in said, said
            assert f"; did you mean {columns[role]}" in said and "\n  allowed: " in said
            visited[method, role] += 1
    roles = {role for _, columns, _, _ in SHAPES.values() for role in columns}
    assert len(roles) == 11 and set(visited) == set(product(METHODS, roles))
    assert sum(visited.values()) == 5 * (3 * 21 + 2 * 3) + 4 + 16 + 1 + 2


def test_a_column_that_this_method_does_not_read_must_be_there_too(refused, tmp_path):
    file = write(tmp_path, ".jsonl", [{"prompt": "p", "completion": "c"}])
    for method, role in (("sft", "ranks"), ("ppo", "completion"), ("ppo", "truth")):
        columns = {"prompt": "prompt", "completion": "completion"} | {role: "complection"}
        said = refused(method, columns, path=str(file))
        assert said.startswith(f"dataset.columns.{role}=complection: not a column of {file}; did you mean completion?")


@pytest.mark.parametrize("split", ["eval", "test"])
def test_the_other_splits_are_checked_before_the_first_is_rendered(refused, tmp_path, split):
    write(tmp_path, ".jsonl", [{"prompt": "p", "completion": "c"}])
    file = write(tmp_path, ".jsonl", [{"promt": "p", "completion": "c"}], split)
    splits = Splits(**{"train": "train", "eval": None, "test": None, split: split})
    said = refused("sft", {"prompt": "prompt", "completion": "completion"}, path=str(tmp_path), splits=splits)
    assert said.startswith(f"dataset.columns.prompt=prompt: not a column of {file}; did you mean promt")


@pytest.mark.parametrize(
    "form, role, nearest", [("chat", "mesages", "messages"), ("chat", "text", "context"), ("tree", "rank", "ranks")]
)
def test_a_role_that_the_format_does_not_know_is_refused_with_the_nearest(refused, tmp_path, form, role, nearest):
    file = write(tmp_path, ".jsonl", TREE)
    said = refused("sft", {role: "text"}, path=str(file), format=form)
    assert said.startswith(f"dataset.columns.{role}=text: not a role of dataset.format={form}; did you mean {nearest}")
    assert "\n  allowed: " in said and ("fix: dataset.format=plain" in said) == (role == "text")


@pytest.mark.parametrize("name", ["prompt", "text"])
def test_an_unmapped_column_is_not_guessed(refused, tmp_path, name):
    file = write(tmp_path, ".jsonl", [{"prompt": "p", "text": "t"}])
    said = refused("ppo", {"text": name}, path=str(file), format="plain")
    assert said.startswith(
        f"dataset.columns={{'text': '{name}'}}: gives no prompts\n  allowed: prompt, or messages, or"
    )


ROWS = [{"prompt": f"hello {i}", "completion": "fine"} for i in range(4)]
BAD = {
    "empty text": {"prompt": "hello", "completion": ""},
    "not text": {"prompt": "hello", "completion": 5},
    "no such column": {"prompt": "hello"},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_tokenizer_from_scratch_reads_rows_as_training_does(compose_stage, tmp_path, reason):
    file = write(tmp_path, ".jsonl", [*ROWS, BAD[reason]])
    settings = [
        "model=support_scratch",
        "adapter=none",
        f"dataset.path={file}",
        "dataset.splits={eval: null, test: null}",
    ]
    with pytest.raises(DataError, match=r"train.jsonl:5: completion .*\n  fix: mend the row, or dataset.bad_rows=drop"):
        load_tokenizer(compose_stage(*settings))
    with pytest.raises(DataError, match="did you mean completion"):
        load_tokenizer(compose_stage(*settings, "dataset.columns.completion=complection"))
    stage = compose_stage(*settings, "dataset.bad_rows=drop")
    tokenizer = load_tokenizer(stage)
    whole = load_tokenizer(compose_stage(*settings[:2], f"dataset.path={write(tmp_path, '.jsonl', ROWS)}"))
    assert tokenizer.get_vocab() == whole.get_vocab(), "the bad row taught it nothing"
    write(tmp_path, ".jsonl", [*ROWS, BAD[reason]])
    renderer = Renderer(tokenizer, plain=False)
    ledger = prepare(stage, renderer, renderer).ledger["train"]
    assert ledger["read"] == 5 and ledger["kept"] == 4 and ledger["dropped"] == {reason: 1}


@pytest.mark.parametrize(
    "method, kept", [("sft", ROWS), ("dpo", [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 4)]
)
def test_a_later_row_without_a_column_is_a_bad_row(compose_stage, refused, tmp_path, method, kept):
    for role in kept[0]:
        file = write(tmp_path, ".jsonl", [*kept, {k: v for k, v in kept[0].items() if k != role}])
        settings = [f"dataset.path={file}", "dataset.splits={eval: null, test: null}"]
        stage = compose_stage(f"method={method}", *settings, "model=support_scratch", "adapter=none")
        stage.dataset.columns = {name: name for name in kept[0]}
        renderer = Silent()
        with pytest.raises(DataError, match=rf"train.jsonl:5: {role} is not there, only "):
            prepare(stage, renderer, renderer)


class Silent(Renderer):
    """Renders every text as its length, without a tokenizer."""

    def __init__(self):
        self.plain = False

    def identity(self):
        return "lengths"

    def encode(self, messages):
        return [1, 2], [0, 1]

    def reply(self, prompt, completion):
        return [1], [len(completion[0]["content"])], [1]

    def prompt(self, messages):
        return list(range(1, 10))


def test_the_lengths_of_cut_prompts_follow_the_place_of_a_row_and_not_the_folder(compose_stage, tmp_path):
    lengths = []
    rows = [{"text": f"text {i}"} for i in range(40)]
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, ".jsonl", rows)
        write(tmp_path / name, ".jsonl", rows, "test")
        stage = compose_stage(
            "recipes=imdb-gpt2-large/ppo", f"dataset.path={tmp_path / name}", "dataset.splits.eval=null"
        )
        renderer = Silent()
        renderer.tokenizer = type("Decoder", (), {"decode": staticmethod(str)})
        data = prepare(stage, renderer, renderer)
        lengths.append([[len(row["input_ids"]) for row in split] for split in (data.train, data.test)])
    assert lengths[0] == lengths[1]
    train, test = lengths[0]
    assert len(train) == len(test) == 40 and set(train) == set(range(2, 9)) and train != test


def test_a_column_of_prompts_nobody_asks_for_may_be_anywhere(compose_stage):
    """`support_text` maps `prompt` for its test split alone, which is not opened without evaluation."""
    small = "dataset.options={train: 8, held_out: 4, evaluation: 4, seed: 0}"
    stage = compose_stage("recipes=support/base", small, "debug=smoke", "evaluation.prompts=0")
    renderer = Renderer(load_tokenizer(stage), plain=True)
    assert prepare(stage, renderer, renderer).ledger["train"]["kept"] == 8
