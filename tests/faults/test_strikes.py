"""A stage that is struck at any moment of its life leaves nothing half done, says so, and ends as if nothing had been when started again."""

import os
from itertools import cycle

import pytest

from tests.faults.tiny import METHODS, left, settings
from tests.faults.traps import STRIKES

pytestmark = pytest.mark.slow
KILLED = ("rows prepared", "trainer built", "first run.json", "before step 1", "step 3", "half a line")
KILLED += ("half a checkpoint", "before the mark", "after the mark", "half of final", "final saved", "status trained")
KILLED += ("evaluation", "results", "status finished")
FULL = ("first run.json", "step 3", "half a checkpoint", "before the mark", "half of final", "results")
PHASES = ("rows prepared", "trainer built", "before step 1", "step 3", "half of final", "evaluation", "status finished")
# each moment with a kill, and the other strikes at every second of theirs, with one of the methods in turn; FAULTS=all tries all of it
ALL = os.environ.get("FAULTS") == "all"
STRUCK = [("kill", moment) for moment in KILLED] + [("disk full", moment) for moment in FULL[:: 1 if ALL else 2]]
STRUCK += [("stop", moment) for moment in PHASES[:: 1 if ALL else 2]]
STRUCK += [("interrupt", moment) for moment in PHASES[0 if ALL else 1 :: 1 if ALL else 2]]
STRUCK += [("no memory", moment) for moment in ("trainer built", "step 3", "evaluation")]
TURN = cycle(METHODS)
CASES = [(*case, method) for case in STRUCK for method in (METHODS if ALL else [next(TURN)])]


@pytest.mark.parametrize(("strike", "moment", "name"), CASES)
def test_a_struck_stage_ends_as_the_unbroken_one(whole, below, door, seen, strike, moment, name):
    root, code = below(name), STRIKES[strike][1]
    folder = root / "support" / name
    struck = door("train.py", *settings(name, root), trap=("arm", moment, strike))
    assert struck.returncode == code, struck.stdout + struck.stderr
    assert "Traceback" not in struck.stderr and (code < 0 or struck.stderr)
    assert '"finished"' not in (folder / "run.json").read_text() if (folder / "run.json").exists() else True
    again = door("train.py", *settings(name, root))
    assert again.returncode == 0, again.stdout + again.stderr
    assert left(folder) == left(whole / "support" / name)
    assert not [path.name for path in folder.glob(".*") if path.name != ".hydra"]
    seen(f"{strike}: exit {code}, then equal to the unbroken run")
