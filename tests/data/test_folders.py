"""Folders as people and the hub lay them out: the files of a split, all of them and no others, or what there is."""

import functools
import json
from dataclasses import replace

import pytest

from rlhf.config import compose_config, to_stage
from rlhf.data import sources
from rlhf.errors import DataError

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}


@functools.cache
def composed():
    return to_stage(compose_config(["dataset=local_pairs", "method=dpo", "dataset.path=rows"])).dataset


@pytest.fixture
def lay(tmp_path):
    """`lay(names, subset)`: a dataset whose folder has these files, each of one row that says its name."""

    def make(names, subset=None):
        for name in names:
            (tmp_path / "rows" / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".parquet"):
                import pyarrow
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW | {"from": name}]), tmp_path / "rows" / name)
            else:
                (tmp_path / "rows" / name).write_text(json.dumps(ROW | {"from": name}) + "\n")
        return replace(composed(), path=f"{tmp_path}/rows", subset=subset)

    return make


def read(dataset, split="train"):
    return [row.values["from"] for row in sources.read(dataset, split)]


@pytest.mark.parametrize(
    "names, split, found",
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
         "train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"], "train",
         ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"]),
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"], "train",
         ["default/train/0000.parquet", "default/train/0001.parquet"]),
        (["train_sft-00000-of-00001.parquet", "train_gen-00000-of-00001.parquet"], "train_sft",
         ["train_sft-00000-of-00001.parquet"]),
        (["train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"], "train", ["train/a.jsonl", "train/b.jsonl"]),
        (["train_1.jsonl", "train_2.jsonl"], "train", ["train_1.jsonl", "train_2.jsonl"]),
        (["train.jsonl", ".cache/train.jsonl", "dataset_infos.json"], "train", ["train.jsonl"]),
        (["train.jsonl", "old/train.jsonl"], "other", "no file named after split `other`"),
        (["train_sft-00000-of-00001.parquet", "train_prefs-00000-of-00001.parquet", "test-00000-of-00001.parquet"], "train",
         "has: test-.*\n  allowed: train_prefs, train_sft, test\n"
         "  fix: dataset.splits.train=train_prefs or dataset.splits.train=train_sft"),
        (["alpaca.json"], "train", "has: alpaca.json.*\n  allowed: alpaca\n  fix: dataset.path=.*/rows/alpaca.json$"),
        (["train.jsonl", "train.csv"], "train", "`train` is one file and several.*: train.csv, train.jsonl"),
        (["train.jsonl", "train-00000-of-00001.parquet"], "train", "`train` is one file and several"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "train", "1 of 3 shards .* number 1"),
        (["a/train.jsonl", "b/train.jsonl"], "train", "several subsets\n  allowed: a, b\n  fix: dataset.subset=b"),
        ([".hidden/train.jsonl", "notes.txt"], "train", "no file that is read in it"),
    ],
)  # fmt: skip
def test_a_split_is_its_own_files(lay, names, split, found):
    dataset = lay(names)
    if isinstance(found, list):
        assert read(dataset, split) == found
        return
    with pytest.raises(DataError, match=found):
        read(dataset, split)


@pytest.mark.parametrize(
    "subset, found",
    [
        ("en", ["en/train-00000-of-00001.parquet"]),
        ("de", ["de/train/0000.parquet"]),
        (".", ["train.jsonl"]),
        ("fr", "dataset.subset=fr: not in .*\n  allowed: ., de, en\n  fix: dataset.subset=en"),
    ],
)
def test_a_subset_is_a_folder(lay, subset, found):
    names = ["en/train-00000-of-00001.parquet", "de/train/0000.parquet", "train.jsonl"]
    dataset = lay(names, subset)
    if isinstance(found, list):
        assert read(dataset) == found
        return
    with pytest.raises(DataError, match=found):
        read(dataset)


CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: "parts/a*.jsonl"}
  - {split: test, path: [parts/b.jsonl]}
- config_name: other
  data_files: parts/b.jsonl
---
# A dataset
"""


def test_the_files_that_a_dataset_card_names_are_the_splits(lay, tmp_path):
    names = ["parts/a1.jsonl", "parts/a2.jsonl", "parts/b.jsonl", "train.jsonl"]
    dataset = lay(names, "main")
    (tmp_path / "rows/README.md").write_text(CARD)
    assert read(dataset) == names[:2] and read(dataset, "test") == [names[2]]
    assert read(lay([], "other")) == [names[2]]
    with pytest.raises(DataError, match="names several subsets\n  allowed: main, other\n  fix: dataset.subset=main"):
        read(lay([]))
    with pytest.raises(DataError, match="no split `validation`\n  allowed: test, train"):
        read(dataset, "validation")


def test_what_save_to_disk_left_is_read(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([ROW | {"from": str(i)} for i in range(5)])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train_sft": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "several")
    assert read(replace(composed(), path=f"{tmp_path}/one"), "train[1:3]") == ["1", "2"]
    several = replace(composed(), path=f"{tmp_path}/several")
    assert read(several, "test") == ["1"]
    with pytest.raises(DataError, match="no split `train`\n  allowed: train_sft, test"):
        read(several)


@pytest.mark.parametrize(
    "path, message",
    [
        ("rows", None),
        ("org/name", None),
        ("rows/train.jsnl", "no such file or folder; did you mean rows/train.jsonl"),
        ("rows/trian.jsonl", "no such file or folder; did you mean rows/train.jsonl"),
        ("a/b/c", "no such file or folder"),
        ("some.jsonl", "no such file or folder"),
        ("https://example.org/my%20rows.jsonl", "an address is no file.*\n  fix: curl -LO"),
        ("hf://datasets/org/name/data/train.parquet", "an address.*\n  fix: dataset.path=org/name$"),
    ],
)
def test_a_path_of_this_machine_is_no_hub_id(lay, tmp_path, monkeypatch, path, message):
    lay(["train.jsonl"])
    monkeypatch.chdir(tmp_path)
    assert sources.is_hub(path) == (path == "org/name")
    if message:
        with pytest.raises(DataError, match=message):
            read(replace(composed(), path=path))


def test_a_file_that_nobody_gave_a_suffix_is_there(tmp_path):
    (tmp_path / "rows").write_text(json.dumps(ROW | {"from": "bare"}))
    assert read(replace(composed(), path=f"{tmp_path}/rows")) == ["bare"]
    (tmp_path / "rows").write_text("words")
    with pytest.raises(DataError, match="neither its name nor its first bytes"):
        read(replace(composed(), path=f"{tmp_path}/rows"))
