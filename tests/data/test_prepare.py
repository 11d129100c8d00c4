"""Tokens on disk: the same from one process and several, kept by what they follow from, whole or made again."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import pytest

from rlhf.config import REPO
from rlhf.data import prepare as prepared
from rlhf.data import store
from rlhf.data.prepare import prepare
from rlhf.errors import DataError, Refusal, ResourceError
from rlhf.models.tokenizer import load_tokenizer, renderer
from rlhf.output.console import header

SETTINGS = ("model=support_scratch", "adapter=none", "quantization=none", "dataset.splits={eval: null, test: null}")


def rows_of(kind, count):
    words = [f"word{i % 7} and {i}" for i in range(count)]
    if kind == "dpo":
        return [{"prompt": f"Tell {word}.", "chosen": f"{word}, yes.", "rejected": "No."} for word in words]
    return [{"prompt": f"Tell {word}.", "completion": f"{word}, yes."} for word in words]


@pytest.fixture
def ready(compose_stage, tmp_path, monkeypatch):
    """`ready(rows, ...)`: a function that prepares these rows in a cache of its own."""
    monkeypatch.setattr(store, "cache", lambda: tmp_path / "cache/rlhf")
    monkeypatch.setattr(store, "BLOCK", 8)

    def make(rows, *settings, method="sft"):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        preset = "local_pairs" if method == "dpo" else "local_demonstrations"
        given = [f"method={method}", "method.start_from=null", f"dataset={preset}", f"dataset.path={file}"]
        stage = compose_stage(*given, *SETTINGS, *settings)
        sft = compose_stage("method=sft", "dataset=support_demonstrations", *SETTINGS[:3], "debug.rows=40")
        tokenizer = load_tokenizer(sft)

        def prepared():
            return prepare(stage, renderer(stage, tokenizer), renderer(stage, tokenizer))

        prepared.stage = stage
        return prepared

    return make


def several(monkeypatch, count):
    monkeypatch.setattr(store, "processes", lambda rows: count)


def entries():
    return [path for path in store.cache().iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_one_process_and_three_give_the_same_rows_and_ledger(ready, monkeypatch, method):
    rows = rows_of(method, 101)
    rows[50] = rows[51] = dict.fromkeys(rows[0])  # two bad ones
    make = ready(rows, "dataset.bad_rows=drop", method=method)
    found = []
    for count in (1, 3):
        several(monkeypatch, count)
        found.append(make())
        assert len(list(entries()[0].glob("*.arrow"))) == {1: 1, 3: 5}[count]
        shutil.rmtree(store.cache())
    one, three = found
    assert one.ledger == three.ledger and one.train.to_list() == three.train.to_list() and len(one.train) == 99
    assert one.ledger["train"]["read"] == 101 and sum(one.ledger["train"]["dropped"].values()) == 2
    assert str(one.train.features.arrow_schema.field(0).type) == "list<item: int32>"


def test_the_first_bad_row_in_order_is_named_however_many_work(ready, monkeypatch):
    rows = rows_of("sft", 101)
    rows[30] = rows[70] = {"prompt": "p", "completion": ""}
    for count in (1, 3):
        several(monkeypatch, count)
        with pytest.raises(DataError, match=r"rows.jsonl:31: completion is empty"):
            ready(rows)()
        assert not entries() and not list(store.cache().glob(".partial*"))


def test_rows_are_tokenized_once(ready, monkeypatch):
    make = ready(rows_of("sft", 20))
    first = make()
    calls = []
    monkeypatch.setattr(prepared, "_rows", lambda *given: calls.append(given))
    again = make()
    assert not calls and again.train.to_list() == first.train.to_list()
    assert again.ledger["train"] == first.ledger["train"] | {"cached": True}


@pytest.mark.parametrize(
    "setting",
    ["dataset.format=plain", "dataset.max_length=24", "method.learn=all", "dataset.system=Hi", "debug.rows=19"],
)
def test_another_setting_is_another_entry(ready, setting):
    rows, before = rows_of("sft", 20), "dataset.long_rows=truncate"
    ready(rows, before)()
    ready(rows, before)()
    assert len(entries()) == 1
    ready(rows, before, setting)()
    assert len(entries()) == 2
    ready([*rows[:-1], {"prompt": "new", "completion": "row"}], before)()
    assert len(entries()) == 3


SPOILED = {
    "a torn file": lambda entry: next(entry.glob("*.arrow")).open("r+b").truncate(100),
    "other bytes": lambda entry: (file := next(entry.glob("*.arrow"))).write_bytes(file.read_bytes()[:-64] + b"0" * 64),
    "a missing file": lambda entry: next(entry.glob("*.arrow")).unlink(),
    "a torn list": lambda entry: (entry / store.DONE).write_text('{"files": {'),
    "another list": lambda entry: (entry / store.DONE).write_text("[]"),
    "no list": lambda entry: (entry / store.DONE).unlink(),
    "nothing": lambda entry: [file.unlink() for file in entry.iterdir()],
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_not_whole_is_made_again(ready, how):
    make = ready(rows_of("sft", 20))
    first = make()
    expected = first.train.to_list()
    SPOILED[how](entries()[0])
    again = make()
    assert again.train.to_list() == expected and "cached" not in again.ledger["train"]
    assert make().ledger["train"]["cached"]


def test_what_a_library_puts_beside_the_rows_is_not_read(ready):
    make = ready(rows_of("sft", 20))
    expected = make().train.to_list()
    make().train.map(lambda row: {"input_ids": row["input_ids"][:1]})
    (entries()[0] / "cache-1.arrow").write_bytes(b"no rows")
    assert make().train.to_list() == expected and make().ledger["train"]["cached"]


def test_what_a_killed_process_left_goes(ready):
    make = ready(rows_of("sft", 20))
    make()
    name = entries()[0].name
    entries()[0].rename(store.cache() / f".partial-{name}")
    assert "cached" not in make().ledger["train"] and [path.name for path in entries()] == [name]
    assert not list(store.cache().glob(".partial*"))


def test_a_killed_worker_is_no_end_of_waiting(ready, monkeypatch):
    rows = rows_of("sft", 101)
    several(monkeypatch, 2)
    own = os.getpid()
    monkeypatch.setattr(prepared, "_rows", lambda *given: os.getpid() != own and os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ResourceError, match="was killed, most likely for want of memory"):
        ready(rows)()
    assert not entries()


def test_a_full_disk_leaves_nothing(ready, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Writer, "flush", full)
    with pytest.raises(ResourceError, match=r"no space left on the disk of .*\n  fix: .*HF_DATASETS_CACHE"):
        ready(rows_of("sft", 20))()
    assert not entries() and not list(store.cache().glob(".partial*"))


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_what_train_asks_too_is_counted_and_told(ready, monkeypatch, capsys, method):
    several(monkeypatch, 3)
    monkeypatch.setattr(store, "ALONE", 8)
    rows = rows_of(method, 40)
    reply = "completion" if method == "sft" else "chosen"
    for number in (2, 5, 30):
        rows[number] = rows[number] | {"prompt": rows[35]["prompt"], reply: "Another, yes."}
    splits = [
        "dataset.splits.train='train[:32]'",
        "dataset.splits.eval='train[32:]'",
        "dataset.splits.test='train[34:36]'",
    ]
    prepared = ready(rows, *splits, "evaluation.prompts=2", method=method)
    for _ in range(2):  # made, and found again
        data = prepared()
        assert {role: ledger.get("in_train") for role, ledger in data.ledger.items()} == {
            "train": None,
            "eval": 1,
            "test": 1,
        }
    header(prepared.stage, data)
    said = capsys.readouterr().out
    assert "warning  1 of 8 rows of eval ask what rows of train ask\n" in said and "1 of 2 rows of test ask" in said


WAITS = """
import sys, time, json
from array import array
from pathlib import Path
from rlhf.data import store
store.cache = lambda: Path(sys.argv[1])
def make(folder):
    print("makes", flush=True)
    time.sleep(1)
    return {"made": True}, array("Q", [7])
print(json.dumps(store.kept("name", make)[1]), flush=True)
"""


def test_a_refusal_of_another_process_is_the_same_one():
    refusal = Refusal("key", 1, "why", allowed=["a"], fix="key=a")
    again = pickle.loads(pickle.dumps(refusal))
    assert (str(again), again.key, again.fix) == (str(refusal), "key", "key=a")


def test_of_two_processes_one_prepares(tmp_path):
    command = [sys.executable, "-c", WAITS, str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(REPO / "src")}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = sorted(process.communicate()[0].splitlines() for process in both)
    assert said == [["makes", '{"made": true}'], ['{"made": true, "cached": true}']]


def test_a_row_more_takes_no_memory(ready):
    """Tokens lie on disk: of 113 bytes a token that Python lists took, hardly any is left (measured over 6,000 rows)."""
    import tracemalloc

    words = "a longer text that has some more tokens to it " * 10
    peaks = []
    for count in (400, 3200):
        make = ready(
            [{"prompt": f"Tell {i}.", "completion": words + str(i)} for i in range(count)], "dataset.max_length=4096"
        )
        tracemalloc.start()
        tokens = make().ledger["train"]["tokens"]["sum"]
        peaks.append((tokens, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (few, low), (many, high) = peaks
    assert (high - low) / (many - few) < 6, "bytes a token"


def test_where_no_terminal_is_a_line_tells_how_far_it_has_come(ready, monkeypatch, capsys):
    make = ready([{"prompt": f"Tell {i}.", "completion": f"Reply {i}"} for i in range(1200)])
    make()
    assert "preparing" not in capsys.readouterr().err, "what is quickly done needs no line"
    monkeypatch.setattr(store, "TOLD", 0.0)
    shutil.rmtree(store.cache())
    make()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines and all(line.startswith("preparing train: ") and "/1200 [" in line for line in lines), lines


def test_small_splits_are_prepared_in_this_process():
    assert store.processes(None) == store.processes(0) == store.processes(store.ALONE) == 1
    cores = len(os.sched_getaffinity(0))
    assert store.processes(10 * store.ALONE * cores) == cores and store.processes(store.ALONE + 1) == min(2, cores)
    assert [(s.start, s.stop) for s in store.stretches([10], 1)] == [(0, 10)]
    covered = [(s.part, s.start, s.stop) for s in store.stretches([2000, None, 513], 2)]
    assert covered == [
        (0, 0, 512),
        (0, 512, 1024),
        (0, 1024, 1536),
        (0, 1536, 2000),
        (1, 0, None),
        (2, 0, 512),
        (2, 512, 513),
    ]
