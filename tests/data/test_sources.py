"""Rows from files: every way in, and what is said about every kind of broken file."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.data.sources import fingerprint, read
from rlhf.errors import ConfigError, DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(10)]


def _write(folder, suffix):
    file = folder / f"train{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == ".csv":
        file.write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_files_and_folders_give_the_same_rows(compose_stage, tmp_path, suffix, as_folder):
    file = _write(tmp_path, suffix)
    dataset = compose_stage(f"dataset.path={tmp_path if as_folder else file}").dataset
    assert [row.values for row in read(dataset, "train")] == ROWS
    assert [row.values for row in read(dataset, "train[:20%]")] == ROWS[:2]
    assert [row.values for row in read(dataset, "train[-3:]")] == ROWS[-3:]
    assert [row.values for row in read(dataset, "train", limit=4)] == ROWS[:4]


def test_a_slice_holds_for_generated_rows(compose_stage):
    dataset = compose_stage("dataset=support_prompts", "dataset.options.evaluation=20").dataset
    whole = list(read(dataset, "evaluation"))
    assert len(whole) == 20 and list(read(dataset, "evaluation[:4]")) == whole[:4]
    assert list(read(dataset, "evaluation[50%:]", limit=3)) == whole[10:13]


def test_the_fingerprint_follows_the_bytes_and_the_generator_settings(compose_stage, tmp_path):
    file = _write(tmp_path, ".jsonl")
    dataset = compose_stage(f"dataset.path={file}").dataset
    before = fingerprint(dataset)
    assert before == fingerprint(dataset)
    file.write_text(file.read_text().replace("answer 3", "answer three"))
    assert fingerprint(dataset) != before
    generated = [
        fingerprint(compose_stage("dataset=support_rankings", f"dataset.options.noise={n}").dataset) for n in (0.1, 0.2)
    ]
    assert generated[0] != generated[1]


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"prompt": "a"}\n{"prompt": \n', r"train.jsonl:2: not JSON"),
        (b'["a"]\n', r"train.jsonl:1: expected an object"),
        (b'{"prompt": "\xff"}\n', r"train.jsonl:1: not UTF-8"),
    ],
)
def test_a_broken_line_is_named(compose_stage, tmp_path, content, message):
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read(compose_stage(f"dataset.path={tmp_path}/train.jsonl").dataset, "train"))


def test_a_ragged_csv_and_a_false_parquet_are_named(compose_stage, tmp_path):
    (tmp_path / "train.csv").write_text("prompt,completion\na,b\nonly one\n")
    with pytest.raises(DataError, match=r"train.csv:3: expected 2 columns"):
        list(read(compose_stage(f"dataset.path={tmp_path}/train.csv").dataset, "train"))
    (tmp_path / "train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(read(compose_stage(f"dataset.path={tmp_path}/train.parquet").dataset, "train"))


def test_missing_files_splits_and_generators_are_refused_with_what_there_is(compose_stage, tmp_path):
    _write(tmp_path, ".jsonl")
    cases = [
        (f"dataset.path={tmp_path}/absent.jsonl", "train", DataError, "no such file"),
        (f"dataset.path={tmp_path}", "validation", DataError, "has: train.jsonl"),
        (f"dataset.path={tmp_path}/train.jsonl", "test", DataError, "fix: 'dataset.splits.eval="),
        ("dataset.path=generator:support/rankigns", "train", ConfigError, "did you mean support/rankings"),
        ("dataset.path=/nowhere/at/all", "train", DataError, "no such file"),
        ("dataset.options.train=1000000", "train", DataError, "at most"),
    ]
    for override, split, kind, message in cases:
        with pytest.raises(kind, match=message):
            list(read(compose_stage(override).dataset, split))


def test_the_hub_offline_says_what_to_do(compose_stage):
    with pytest.raises(DataError, match="fix: check the name"):
        list(read(compose_stage("dataset=ultrachat").dataset, "train_sft"))


MESSAGE = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "p"}
REPLIES = [MESSAGE | {"message_id": f"r{i}", "parent_id": "a", "role": "assistant", "rank": i} for i in range(2)]


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [{"prompt": "p", "chosen": "c"}],
            r"train.jsonl:1: .*message_id, parent_id, role, text\n  it has: prompt, chosen",
        ),
        ([MESSAGE | {"role": "human"}], "train.jsonl:1: role='human' of a message\n  allowed: prompter, assistant"),
        ([MESSAGE, REPLIES[0] | {"rank": "first"}], "train.jsonl:2: rank='first' must be a number"),
        ([MESSAGE | {"parent_id": "a"}, *REPLIES], "train.jsonl:1: message_id=a is its own ancestor"),
    ],
)
def test_a_tree_that_is_none_is_named(compose_stage, tmp_path, rows, message):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        list(read(compose_stage(f"dataset.path={tmp_path}/train.jsonl", "dataset.format=tree").dataset, "train"))


@pytest.mark.parametrize("cell, reason", [(b"caf\xe9", "can't decode"), (b"x" * 200_000, "field larger than")])
def test_a_csv_that_cannot_be_read_is_named(compose_stage, tmp_path, cell, reason):
    (tmp_path / "train.csv").write_bytes(b"prompt,completion\n" + cell + b",a\n")
    with pytest.raises(DataError, match=f"train.csv: after line .: not CSV in UTF-8: .*{reason}"):
        list(read(compose_stage(f"dataset.path={tmp_path}/train.csv").dataset, "train"))
