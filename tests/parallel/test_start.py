"""Our own launcher: the exit code of a run, one message, and nobody left behind."""

import os
import signal
import sys
import time
from pathlib import Path
from threading import Timer

import pytest

from rlhf.parallel import start as launcher
from rlhf.parallel.start import start

MEETING = [sys.executable, str(Path(__file__).with_name("meeting.py"))]
RANK = "import os, signal, sys, time; rank = int(os.environ['RANK']); "


def run(code: str, devices: int = 2) -> int:
    return start(devices, [sys.executable, "-c", RANK + code])


def test_ranks_meet_and_agree(capfd):
    assert start(2, MEETING) == 0
    assert capfd.readouterr().out == "met\n"  # the others have no terminal


def test_a_rank_that_has_ended_is_noticed_by_the_others():
    began = time.monotonic()
    assert start(2, [*MEETING, "lost"]) == 3
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("pass", 0, ""),
        ("print('why', rank, file=sys.stderr); sys.exit(2)", 2, "why 0\n"),  # all of them: once
        ("print('why', rank, file=sys.stderr) if rank else 0; sys.exit(3 if rank else 76)", 3, "why 1\n"),
        ("sys.exit(75)", 75, ""),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank else sys.exit(76)",
            5,
            "error: rank 1 was ended by SIGKILL, as a",
        ),
        ("os.kill(os.getpid(), signal.SIGABRT) if rank else sys.exit(76)", 134, "error: rank 1 was ended by SIGABRT"),
    ],
)
def test_the_one_that_failed_speaks_for_all(capfd, code, expected, said):
    assert run(code) == expected
    error = capfd.readouterr().err
    assert error.startswith(said) if said else not error


def test_a_rank_that_waits_forever_is_ended(monkeypatch):
    monkeypatch.setattr(launcher, "PATIENCE", 0.5)
    assert (
        run("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.2); sys.exit(4) if rank else time.sleep(60)")
        == 4
    )


def test_a_sigterm_reaches_every_rank():
    Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    code = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(30)"
    assert run(code, devices=3) == 75
