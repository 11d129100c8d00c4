"""Ranking a line at a time: through a pipe, and through a terminal as ssh gives one."""

import os
import pty
import subprocess
import sys
import time

import pytest

from rlhf.config import REPO
from rlhf.feedback.schema import Reply
from rlhf.feedback.store import Store

PLANTED = "no \x1b[31m<b>red</b>\x1b]0;title\x07"


@pytest.fixture
def root(tmp_path):
    with Store(tmp_path / "mine/feedback.sqlite") as store, store.transaction():
        for number in range(5):
            replies = [Reply(text, f"mine/{text[:3]}") for text in (f"yes {number}", PLANTED, f"perhaps {number}")]
            store.add([{"role": "user", "content": f"question {number}"}], None, "one", replies)
    return tmp_path


def command(root, *more):
    return [
        sys.executable,
        "src/annotate.py",
        "recipe=mine",
        "mode=terminal",
        "annotator=ann",
        f"run.root={root}",
        *more,
    ]


ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPO}/src"}


def piped(root, *lines, more=()):
    text = "".join(f"{line}\n" for line in lines)
    run = {"capture_output": True, "text": True, "timeout": 120, "cwd": REPO, "env": ENVIRONMENT}
    return subprocess.run(command(root, *more), input=text, **run)


def test_all_that_the_page_can_do(root):
    (root / "rules.txt").write_text("Be nice.")
    lines = [
        "2 1 1",
        "better At nine.",
        "tag b kind brief",
        "tag safe",
        "1 2 3",
        "bad",
        "skip",
        "undo",
        "undo",
        "3 2 1",
    ]
    done = piped(root, *lines, "rules", "skip", "1 1 1", more=[f"rules={root}/rules.txt"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Be nice.") == 2 and "nothing is left for ann, who has judged 5" in done.stdout
    assert "mine/yes" not in done.stdout and "\x1b" not in done.stdout and r"\x1b[31m<b>red" in done.stdout
    with Store(root / "mine/feedback.sqlite") as store:
        said = store.judgements()
    assert [(one.item, one.outcome, list(one.ranks), one.undone is None) for one in said] == [
        (1, "ranked", [1, 0, 0], True),
        (2, "ranked", [0, 1, 2], True),
        (3, "all bad", [], False),
        (4, "skipped", [], False),
        (3, "ranked", [2, 1, 0], True),
        (4, "skipped", [], True),
        (5, "ranked", [0, 0, 0], True),
    ]
    assert said[1].better == "At nine." and said[1].tags == {str(said[1].shown[1]): ["brief", "kind"], "": ["safe"]}
    assert all(one.milliseconds is not None for one in said) and not said[0].better and not said[4].better


def test_what_is_none_of_the_words_is_said_and_nothing_is_kept(root):
    wrong = [
        "1 2",
        "1 2 4",
        "0 1 2",
        "1 2 x",
        "9" * 5000,
        "what",
        "tag q kind",
        "tag a rude",
        "undo",
        "",
        "quit",
        "1 2 3",
    ]
    done = piped(root, *wrong)
    assert done.returncode == 0, done.stderr
    for words in (
        "places=1 2: one of 1, 2, 3 for each of 3",
        "line=what: is none of these",
        "tag=q: is none",
        "tag=rude: is none",
    ):
        assert words in done.stdout
    with Store(root / "mine/feedback.sqlite") as store:
        assert store.judgements() == []


def test_a_terminal_and_the_end_of_its_input(root):
    mine, theirs = pty.openpty()
    process = subprocess.Popen(command(root), stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPO, env=ENVIRONMENT)
    os.close(theirs)
    read = ""

    def until(words, since=0):
        nonlocal read
        end = time.monotonic() + 60
        while words not in read[since:]:
            assert time.monotonic() < end
            read += os.read(mine, 4096).decode(errors="replace")
        return len(read)

    seen = until("ann> ")
    os.write(mine, b"better caf\xe9\n1 2 3\n")  # of a terminal with another alphabet
    until("1 judged, 4 left", seen)
    until("ann> ", len(read) - 5)
    os.write(mine, b"\x04")  # Ctrl-D
    assert process.wait(60) == 0
    os.close(mine)
    with Store(root / "mine/feedback.sqlite") as store:
        assert [(one.ranks, one.better) for one in store.judgements()] == [([0, 1, 2], "caf\ufffd")]
