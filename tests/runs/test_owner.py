"""One owner a folder, nothing deleted that is not ours, and a signal that reaches what a process has started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf import files
from rlhf.config import REPO
from rlhf.errors import ConfigError, DataError, ResourceError
from rlhf.runs import record
from rlhf.runs.lock import hold, release

HOLD = "import sys; from rlhf.runs.lock import hold; from pathlib import Path; hold(Path(sys.argv[1]), 'first'); print('has it', flush=True); {then}"
WAIT = "import time; time.sleep(60)"


def _start(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(REPO / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(autouse=True)
def released():
    yield
    release()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_lock_ends_with_its_process(tmp_path, end):
    folder = tmp_path / "recipe/sft"
    first = _start(HOLD.format(then=WAIT), str(folder))
    assert first.stdout.readline() == "has it\n"
    with pytest.raises(
        ResourceError, match=rf"{folder} is being written by process {first.pid} on .* since .*: first\n  fix: "
    ):
        hold(folder, "second")
    first.send_signal(end)
    first.wait()
    hold(folder, "second")
    assert json.loads((tmp_path / "recipe/.lock-sft").read_text())["process"] == os.getpid()
    release()
    assert not list((tmp_path / "recipe").iterdir())


def test_of_five_starters_one_writes(tmp_path):
    code = HOLD.format(then="time.sleep(float(sys.argv[2]))").replace("import sys;", "import sys, time;")
    started = [_start(code, str(tmp_path / "run"), "3") for _ in range(5)]
    said = [process.communicate()[0] for process in started]
    assert sorted(said) == ["", "", "", "", "has it\n"] and not list(tmp_path.iterdir())


def test_a_child_does_not_keep_the_lock(tmp_path):
    code = HOLD.format(then="import os; os.fork() and os._exit(0); " + WAIT)
    first = _start(code, str(tmp_path / "run"))
    first.wait()
    hold(tmp_path / "run", "second")


def _run(folder, **run):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))


def test_only_a_run_of_the_same_stage_is_replaced_and_it_stays_until_the_new_one_stands(compose_stage, tmp_path):
    stage = compose_stage("recipes=support/sft", "run.overwrite=true")
    for spoil, words in (
        (lambda: (stage.path / "thesis.tex").write_text("x"), "is no run"),
        (lambda: _run(stage.path, id="1", stage="dpo"), "is the run of stage dpo"),
        (lambda: _run(stage.path / "inner/one", id="1", stage="sft"), "holds the run"),
    ):
        stage.path.mkdir(parents=True)
        spoil()
        with pytest.raises(ConfigError, match=words):
            record.claim(stage)
        assert len(list(stage.path.iterdir())) == 1
        stage.path.rename(tmp_path / words)
    _run(stage.path, id="1", stage="sft", status="finished")
    assert record.claim(stage) is False
    aside = record.set_aside(stage)
    assert aside is not None and json.loads((aside / "run.json").read_text())["id"] == "1" and not stage.path.exists()
    _run(stage.path, id="2", stage="sft", status="running")  # the new one was begun, and is begun again
    assert record.set_aside(stage) == aside and json.loads((aside / "run.json").read_text())["id"] == "1"
    run = record.Record(stage, None, False, [])
    (stage.path / "final").mkdir()
    run.status("trained")
    assert aside.exists()
    run.status("finished")
    assert not aside.exists() and [path.name for path in stage.path.parent.iterdir()] == [".lock-sft", "sft"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_or_a_file_in_the_place_of_a_run_is_left_alone(compose_stage, tmp_path, kind):
    stage = compose_stage("recipes=support/sft", "run.overwrite=true")
    stage.path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    stage.path.symlink_to(tmp_path / "elsewhere") if kind == "link" else stage.path.write_text("x")
    with pytest.raises(ConfigError, match=rf"{stage.path} is a {kind}"):
        record.claim(stage)


@pytest.mark.parametrize(
    ("content", "words"), [("", "is empty"), ('{"id": ', "can't be read"), ("[]", "holds no object")]
)
def test_a_torn_run_json_is_named(compose_stage, content, words):
    stage = compose_stage("recipes=support/sft")
    stage.path.mkdir(parents=True)
    (stage.path / "run.json").write_text(content)
    with pytest.raises(DataError, match=rf"run.json {words}"):
        record.claim(stage)


def test_weights_that_changed_after_the_run_are_refused(compose_stage):
    stage = compose_stage("recipes=support/sft")
    final = stage.path / "final"
    final.mkdir(parents=True)
    (final / "adapter_model.safetensors").write_bytes(b"0123456789")
    _run(stage.path, id="1", stage="sft", status="trained", final=files.listing(final))
    assert record.trained(stage)
    record.check_final(stage.path)
    (final / "adapter_model.safetensors").write_bytes(b"0123456780")
    assert not record.trained(stage)
    with pytest.raises(DataError, match=r"final/adapter_model.safetensors holds other bytes than were written"):
        record.check_weights(compose_stage("recipes=support/reward"))


PARENT = """
import sys
from rlhf.process import Children
with Children() as children:
    print("ready", flush=True)
    code = children.run([sys.executable, "-c", sys.argv[1]])
    sys.exit(code or children.run(["never started"]))
"""
CHILD = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({code})); print('up', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("leaves", "code"), [(75, 75), (0, 75), (3, 3)])
def test_a_sigterm_reaches_the_child_and_ends_what_follows(leaves, code):
    parent = _start(PARENT, CHILD.format(code=leaves))
    assert [parent.stdout.readline() for _ in range(2)] == ["ready\n", "up\n"]
    parent.terminate()
    assert parent.wait(timeout=30) == code


def test_a_killed_parent_leaves_no_child():
    parent = _start(PARENT, CHILD.format(code=0).replace("print('up'", "import os; print(os.getpid()"))
    parent.stdout.readline()
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("an orphan goes on")
