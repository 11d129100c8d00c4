"""Rows from files: every way in, and what is said about every kind of broken file."""

import functools
import json
import pickle
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from rlhf.config import compose_config, to_stage
from rlhf.data import columns, sources
from rlhf.data.ledger import Ledger
from rlhf.data.rows import BadRow
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
    "rows, line, message",
    [
        ([{"prompt": "p", "chosen": "c"}], 1, "message_id, parent_id, role, text\n  it has: prompt, chosen"),
        ([MESSAGE | {"role": "human"}], 1, "role='human' of a message\n  allowed: prompter, assistant"),
        ([MESSAGE | {"role": ["human"]}], 1, r"role=\['human'\] of a message"),
        ([MESSAGE, REPLIES[0] | {"rank": "first"}], 2, "rank='first' must be a number"),
        ([MESSAGE, REPLIES[0] | {"rank": float("nan")}], 2, "rank=nan must be a number"),
        ([MESSAGE | {"parent_id": "a"}, *REPLIES], 1, "message_id=a is its own ancestor"),
        ([MESSAGE | {"message_id": ["a"]}], 1, "must be text"),
        (
            [{"prompt": MESSAGE | {"replies": ["no message"]}}],
            1,
            "a message is an object with replies, found 'no message'",
        ),
    ],
)
def test_a_tree_that_is_none_is_named(tmp_path, rows, line, message):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = replace(composed(), path=f"{tmp_path}/train.jsonl", format="tree")
    (row,) = read(dataset, "train")
    assert row.where == f"{tmp_path}/train.jsonl:{line}"
    with pytest.raises(BadRow, match=message):
        _ = row.values


def test_replies_in_replies_are_the_same_tree(compose_stage, tmp_path):
    below = MESSAGE | {"message_id": "q", "parent_id": "r0", "text": "q"}
    last = [MESSAGE | {"message_id": f"s{i}", "parent_id": "q", "role": "assistant", "rank": 1 - i} for i in range(2)]
    flat = [MESSAGE, *REPLIES, below, *last]

    def nested(message):
        under = [nested(other) for other in flat if other["parent_id"] == message["message_id"]]
        return {key: message[key] for key in message if key != "parent_id"} | {"replies": under}

    found = []
    for name, rows in (("flat", flat), ("nested", [{"message_tree_id": "a", "prompt": nested(MESSAGE)}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = compose_stage(f"dataset.path={tmp_path}/{name}.jsonl", "dataset.format=tree").dataset
        found.append([row.values for row in read(dataset, "train")])
    assert found[0] == found[1] and [row["ranks"] for row in found[0]] == [[0, 1], [1, 0]]


@functools.cache
def composed():
    return to_stage(compose_config(["dataset=local_demonstrations", "dataset.path=rows"])).dataset


SPLITS = ("dataset.splits.train=train", "dataset.splits.eval=validation", "dataset.splits.test=null")


@pytest.mark.parametrize(
    "bounds", ["[:95%]", "[2:]", "[:-3]", "[-5%:]", "[-30%:-10%]", "[4:2]", "[:99]", "[-99:2]", ""]
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_slice_is_what_python_would_leave(tmp_path, bounds, shards):
    for number in range(shards):
        part = ROWS[number * 4 : None if number == shards - 1 else number * 4 + 4]
        file = tmp_path / f"train-{number:05}-of-{shards:05}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    dataset = replace(composed(), path=str(tmp_path))
    start, stop = (int(b[:-1]) * len(ROWS) // 100 if "%" in b else int(b) if b else None
                   for b in (bounds or "[:]")[1:-1].split(":"))  # fmt: skip
    rows = sources.open(dataset, f"train{bounds}")
    expected = ROWS[start:stop]
    assert [row.values for row in rows.read()] == expected and len(rows) == len(expected)
    for first, last in ((0, 3), (1, None), (3, 9), (5, 5), (20, 30)):
        assert [row.values for row in pickle.loads(pickle.dumps(rows)).read(first, last)] == expected[first:last]


def test_a_slice_from_the_start_reads_no_row_behind_it(compose_stage, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(ROWS, indent=1)[:-1] + ", torn")
    dataset = compose_stage(f"dataset.path={tmp_path}/train.json").dataset
    assert [row.values for row in read(dataset, "train[2:10]")] == ROWS[2:10]
    assert [row.values for row in read(dataset, "train", 3)] == ROWS[:3]


def test_a_bad_line_is_dropped_and_counted_or_stops_with_its_line(compose_stage, tmp_path):
    (tmp_path / "train.jsonl").write_text("no JSON\n" + "".join(json.dumps(row) + "\n" for row in ROWS) + "[1]\n")
    for given, bad_rows in (("drop", "drop"), ("error", "error")):
        ledger, dataset = Ledger(), compose_stage(f"dataset.path={tmp_path}", f"dataset.bad_rows={given}").dataset
        _, _, first, rows, _ = columns.read(dataset, "train", "demonstrations")
        assert first.values == ROWS[0]
        try:
            for row in rows:
                with ledger.account(row, bad_rows):
                    assert row.values["prompt"]
        except DataError as error:
            assert str(error).startswith(
                f"{tmp_path}/train.jsonl:1: not JSON: Expecting value at column 1\n  fix: mend"
            )
        dropped = {"not JSON": 1, "not an object": 1} if given == "drop" else {}
        assert ledger.dropped == dropped and ledger.read == (12 if given == "drop" else 1)


def test_streamed_rows_are_fetched_as_they_are_read(compose_stage, tmp_path, monkeypatch):
    import datasets

    taken = []

    def made():
        for i in range(10**9):
            taken.append(i)
            yield {"messages": [{"role": "user", "content": str(i)}]}

    def stub(path, subset, *, split, revision, streaming=False):
        assert (path, subset, split, revision, streaming) == ("some/id", "main", "train_sft", "abc", True)
        return datasets.IterableDataset.from_generator(made)

    monkeypatch.setattr(datasets, "load_dataset", stub)
    hub = ["dataset.path=some/id", "dataset.subset=main", "dataset.revision=abc", "dataset.streaming=true"]
    dataset = compose_stage(*hub).dataset
    rows = sources.open(dataset, "train_sft[5:8]")
    assert not rows.counted and not taken
    with pytest.raises(TypeError, match="dataset.streaming=true"):
        len(sources.open(dataset, "train_sft"))
    assert [row.values["messages"][0]["content"] for row in rows.read()] == ["5", "6", "7"]
    assert len(taken) < 200, "nothing but what is read, and a batch"
    assert [row.where for row in rows.read()][0] == "some/id[train_sft]:5"
    for bounds in ("[:10%]", "[-5:]"):
        with pytest.raises(ConfigError, match=r"dataset.streaming=true: .*\n  fix: bounds that count from the start"):
            sources.open(dataset, f"train_sft{bounds}")


def test_hub_rows_come_by_index_with_json_as_it_was(compose_stage, monkeypatch):
    import datasets

    turns = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "user", "content": "b", "name": "c"}]
    rows = [{"i": i, "messages": [turn]} for i, turn in enumerate(turns)]
    kept = [{"i": 0, "messages": [{"role": "user", "content": "a"}]}, rows[1]]
    loaded = datasets.Dataset.from_list(rows).select([1, 0, 1])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    found = sources.open(compose_stage("dataset.path=some/id").dataset, "train[1:]")
    assert [row.values for row in found.read()] == kept and len(found) == 2
    assert [row.where for row in pickle.loads(pickle.dumps(found)).read(1)] == ["some/id[train]:2"]


def test_a_mixture_reads_each_part_by_its_weight(compose_stage, tmp_path):
    for name in "ab":
        rows = [{"prompt": f"{name}{i}", "completion": "c"} for i in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = f"[{{path: {tmp_path}/a.jsonl, weight: 0.5}}, {{path: {tmp_path}/b.jsonl, weight: 2.3, columns: {{prompt: p}}}}]"
    dataset = compose_stage("dataset=local_demonstrations", f"dataset.mixture={mixed}").dataset
    assert dataset.path == "mixture:"
    first, second = sources.parts(dataset, "train")
    assert (first.dataset.columns, second.dataset.columns) == ({"messages": "messages"}, {"prompt": "p"})
    asked = [row.values["prompt"] for row in first.open().read()]
    assert asked == ["a0", "a2", "a4", "a6", "a8"] and len(first.open()) == 5
    asked = [row.values["prompt"] for row in second.open().read()]
    assert asked == [f"b{i}" for i in range(10)] * 2 + ["b0", "b3", "b6"] and len(second.open()) == 23
    for start, stop in ((0, 4), (9, 12), (15, None), (22, 30)):
        assert [row.values["prompt"] for row in second.open().read(start, stop)] == asked[start:stop]
    assert sources.parts(dataset, "eval") == []
    both = compose_stage(f"dataset.path={tmp_path}/a.jsonl", f"dataset.mixture={mixed}", *SPLITS).dataset
    (held,) = sources.parts(both, "eval")
    assert held.dataset is both and held.split == "validation"
    before = fingerprint(dataset)
    (tmp_path / "b.jsonl").write_text('{"prompt": "other", "completion": "c"}\n')
    assert fingerprint(dataset) != before


@pytest.mark.parametrize(
    "part, message",
    [
        ("{path: a.jsonl, weight: 0}", r"dataset.mixture\[0\].weight=0: .* above 0\n  fix: weight: 0.5"),
        ("{path: a.jsonl, weight: -1}", "weight=-1"),
        ("{path: a.jsonl, weight: nan}", "weight=nan"),
        ("{path: a.jsonl, weight: inf}", "weight=inf"),
        ("{path: a.jsonl, weight: true}", "weight=True"),
        ("{path: a.jsonl, wieght: 2}", r"dataset.mixture\[0\].wieght=2: is no key of a part; did you mean weight"),
        ("{path: a.jsonl, max_length: 2}", "is said once, for all parts"),
        ("{weight: 2}", r"dataset.mixture\[0\].path=None: a part needs the path"),
        ("{path: a.jsonl, format: chta}", "is no format of rows; did you mean chat"),
        ("{path: a.jsonl, format: plain}", "can't be mixed"),
        ("{path: a.jsonl, splits: {trian: train}}", "splits.trian is not a field .*did you mean train"),
        ("{path: a.jsonl, columns: messages}", "columns=messages: must be a mapping"),
        ("a.jsonl", "must be a list of datasets, each with its path"),
    ],
)
def test_a_part_that_cannot_be_is_refused(part, message):
    dataset = replace(
        composed(), mixture=yaml.safe_load(f"[{part.replace(': nan', ': .nan').replace(': inf', ': .inf')}]")
    )
    with pytest.raises(ConfigError, match=message):
        sources.parts(dataset, "train")
