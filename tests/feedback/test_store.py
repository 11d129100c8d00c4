"""The store of feedback: nothing that was acknowledged is lost, nothing is counted twice, and what cannot be kept is refused."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlhf.config import REPO
from rlhf.errors import DataError, Refusal
from rlhf.feedback.schema import VERSION, Judgement, Reply
from rlhf.feedback.store import Store

ASK = [{"role": "user", "content": "when do you open"}]
WRITER = """
import sys
from rlhf.feedback.schema import Judgement
from rlhf.feedback.store import Store
path, annotator = sys.argv[1:]
with Store(path) as store:
    for item in store.items():
        made = store.judge(Judgement(item.id, annotator, [reply.id for reply in item.replies], [0, 1]))
        print(made, flush=True)
"""


def filled(path, count=3):
    """A store of `count` items with two replies each."""
    with Store(path) as store, store.transaction():
        for number in range(count):
            ask = [{"role": "user", "content": f"question {number}"}]
            assert store.add(ask, None, "one", [Reply("yes.", "a/sft"), Reply("no.", "a/sft")])
    return path


def writer(path, annotator):
    environment = os.environ | {"PYTHONPATH": f"{REPO}/src"}
    command = [sys.executable, "-c", WRITER, str(path), annotator]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_two_writers_of_whom_one_is_killed_lose_nothing_that_was_acknowledged(tmp_path):
    path = filled(tmp_path / "feedback.sqlite", 40)
    killed, other = writer(path, "ann"), writer(path, "bob")
    acknowledged = [killed.stdout.readline() for _ in range(10)]
    killed.send_signal(signal.SIGKILL)
    acknowledged += killed.stdout.read().splitlines()
    assert killed.wait() == -signal.SIGKILL and len(other.communicate()[0].splitlines()) == 40
    with Store(path) as store:
        found = store.judgements()
        assert store.db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    ann = [judgement.id for judgement in found if judgement.annotator == "ann"]
    assert {int(line) for line in acknowledged} <= set(ann) and 10 <= len(acknowledged) < 40
    assert len(ann) - len(acknowledged) in (0, 1)  # one may have been kept and not told any more
    assert sum(judgement.annotator == "bob" for judgement in found) == 40
    assert all(sorted(judgement.shown) and list(judgement.ranks) == [0, 1] for judgement in found)


def test_what_is_kept_comes_back(tmp_path):
    with Store(tmp_path / "runs/a/feedback.sqlite") as store:
        replies = [Reply("Yes.", "a/sft", "f00", "beef", {"temperature": 1.0}, 7), Reply("No <b>", "a/ppo")]
        item = store.add(ASK, {"situation": "brief"}, "one", replies)
        assert store.add(ASK, None, "one", replies) is None  # the same again adds nothing
        assert store.add(ASK, None, "two", replies) == item + 1  # another collection may ask again
        first, second = store.items()
        assert first.messages == ASK and first.facts == {"situation": "brief"} and first.replies[0].sampling
        assert [(r.text, r.source, r.run, r.adapter, r.seed) for r in first.replies] == [
            ("Yes.", "a/sft", "f00", "beef", 7),
            ("No <b>", "a/ppo", None, None, None),
        ]
        a, b = (reply.id for reply in first.replies)
        said = Judgement(item, "ann", [b, a], [1, 1], "ranked", "At nine.", {str(a): ["kind"]}, 1200, added=5.0)
        number = store.judge(said)
        (back,) = store.judgements()
        assert (back.shown, back.ranks, back.better, back.tags) == ([b, a], [1, 1], "At nine.", {str(a): ["kind"]})
        assert (back.milliseconds, back.added, back.undone, back.id) == (1200, 5.0, None, number)
        store.judge(Judgement(item, "bob", [a, b], outcome="all bad"))
        assert store.judgements()[1].ranks == []
        store.thumb(a, "ann", True)
        store.thumb(a, "ann", False)
        store.thumb(b, "bob", True)
        assert store.thumbs() == [(a, "ann", False), (b, "bob", True)]


def test_an_item_is_judged_once_and_a_judgement_can_be_taken_back(tmp_path):
    with Store(filled(tmp_path / "s.sqlite")) as store:
        ids = [reply.id for reply in store.items()[0].replies]
        first = store.judge(Judgement(1, "ann", ids, [0, 1]))
        with pytest.raises(Refusal, match=r"annotator=ann: has judged item 1 already\n  fix: undo"):
            store.judge(Judgement(1, "ann", ids, [1, 0]))
        assert store.undo("bob") is None and store.undo("ann") == first and store.undo("ann") is None
        store.judge(Judgement(1, "ann", ids, [1, 0]))
        assert [judgement.undone is None for judgement in store.judgements()] == [False, True]


def test_what_is_read_together_is_of_one_moment(tmp_path):
    path = filled(tmp_path / "s.sqlite")
    with Store(path, write=False) as reader, Store(path) as writer:
        with reader.snapshot():
            assert len(reader.items()) == 3 and reader.judgements() == []
            writer.judge(Judgement(1, "ann", [1, 2], [0, 1]))
            assert reader.judgements() == []
        assert len(reader.judgements()) == 1
        with pytest.raises(Refusal, match="cannot be written"), writer.snapshot():
            writer.thumb(1, "ann", True)  # which would be forgotten
        writer.thumb(2, "ann", True)
        assert reader.thumbs() == [(2, "ann", True)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shown": [1, 3], "ranks": [0, 1]}, "not the replies of item 1"),
        ({"shown": [1], "ranks": [0]}, "not the replies of item 1"),
        ({"shown": [1, 1], "ranks": [0, 1]}, "not the replies of item 1"),
        ({"item": 9, "shown": [1, 2], "ranks": [0, 1]}, "not the replies of item 9"),
        ({"shown": [1, 2], "ranks": [0]}, "one for each of 2"),
        ({"shown": [1, 2], "ranks": [0, 1], "outcome": "skipped"}, "one for each"),
        ({"shown": [1, 2], "outcome": "fine"}, "allowed: ranked, skipped, all bad"),
        ({"shown": [1, 2], "ranks": [0, 1], "annotator": " "}, "is not one"),
        ({"shown": [1, 2], "ranks": [0, 1], "better": ""}, "is not one"),
    ],
)
def test_what_is_no_judgement_is_refused_and_leaves_nothing(tmp_path, wrong, words):
    with Store(filled(tmp_path / "s.sqlite")) as store:
        with pytest.raises(Refusal, match=words):
            store.judge(Judgement(**{"item": 1, "annotator": "ann", **wrong}))
        assert store.judgements() == []


def test_sql_itself_keeps_a_reply_in_its_item(tmp_path):
    with Store(filled(tmp_path / "s.sqlite")) as store:
        store.judge(Judgement(1, "ann", [1, 2], [0, 1]))
        for row in ("(1, 1, 3, 2, 0)", "(1, 2, 3, 2, 0)", "(7, 1, 1, 2, 0)", "(1, 1, 1, 5, 0)"):
            with pytest.raises(sqlite3.IntegrityError):
                store.db.execute(f"INSERT INTO places VALUES {row}")


def test_a_store_of_a_newer_version_or_another_program_is_not_touched(tmp_path):
    path = filled(tmp_path / "s.sqlite")
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    for write in (True, False):
        with pytest.raises(Refusal, match=f"tables are of version {VERSION + 1}, and this program knows {VERSION}"):
            Store(path, write)
    assert path.read_bytes() == before
    other, text = tmp_path / "other.sqlite", tmp_path / "text.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE notes (a)")
    text.write_text("no database, and long enough to be looked at" * 50)
    for place, words in ((other, "another program"), (text, "not a database"), (tmp_path / "none", "no feedback")):
        with pytest.raises(DataError, match=words):
            Store(place, write=place.name != "none")


def test_a_lock_that_is_held_is_told_with_the_fix(tmp_path):
    path = filled(tmp_path / "s.sqlite")
    with Store(path) as holder, holder.transaction(), Store(path, write=False) as reader:
        assert len(reader.items()) == 3  # who reads does not wait
        with pytest.raises(Refusal, match=r"kept it locked for 0.1 seconds\n  fix: end that process"):
            Store(path, patience=0.1).judge(Judgement(1, "ann", [1, 2], [0, 1]))


def test_a_store_that_cannot_be_written_is_read_and_says_so():
    with tempfile.TemporaryDirectory() as folder:
        path = filled(Path(folder, "s.sqlite"))
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:  # whom no mode stops
            os.seteuid(65534)
        try:
            with Store(path, write=False) as store:
                assert len(store.items()) == 3
            with pytest.raises(Refusal, match=r"cannot be written .*\n  fix: chmod u\+w"):
                Store(path)
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o755)
