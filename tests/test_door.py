"""Every kind of failure leaves with its exit code and at most six lines."""

import errno

import pytest

from rlhf import door
from rlhf.errors import ConfigError, DataError, GuardStop, NonFinite, Preempted, ResourceError


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (GuardStop("x"), 4),
        (NonFinite("loss/policy_avg", float("nan"), 3), 4),
        (ResourceError("x"), 5),
        (MemoryError("x"), 5),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 5),
        (Preempted("x"), 75),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error, code, capsys):
    with pytest.raises(SystemExit) as left:
        door._leave(error)
    assert left.value.code == code
    if code not in (1, 130):
        assert len(capsys.readouterr().err.splitlines()) <= 6


def test_a_long_list_of_problems_is_cut(capsys):
    with pytest.raises(SystemExit):
        door._leave(ConfigError("\n".join(f"problem {i}" for i in range(20))))
    assert capsys.readouterr().err.splitlines()[-1] == "… and 15 more lines"


def test_the_pickle_of_hydras_rerun_is_refused(door):
    done = door("train.py", "--experimental-rerun", "job.pickle")
    assert done.returncode == 2 and "loads a pickle" in done.stderr


@pytest.mark.parametrize(
    ("script", "typo", "meant"), [("compare.py", "jugde=x", "judge"), ("pipeline.py", "stges=[sft]", "stages")]
)
def test_a_mistyped_key_of_a_door_names_the_nearest(door, script, typo, meant):
    done = door(script, "recipe=support", typo)
    assert done.returncode == 2 and f"is not a key; did you mean {meant}?" in done.stderr
