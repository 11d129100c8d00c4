"""Each file of a run that is lost, emptied, cut, changed by one bit or replaced by a folder: nobody reads it unnoticed."""

import os
import shutil
from itertools import product

import pytest

from rlhf import files
from rlhf.errors import DataError
from rlhf.reports.reproduce import measured
from tests.faults.tiny import METHODS, left, settings

pytestmark = pytest.mark.slow


def missing(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def folder(file):
    file.unlink()
    file.mkdir()


ALL = os.environ.get("FAULTS") == "all"
BREAKS = (missing, empty, cut, flipped, folder)
CHAT, REPORT, NEXT = "chat", "report", "the stage after it"
# of a finished SFT run: who reads the file
READ = {
    "run.json": (CHAT, REPORT, NEXT),
    "config.yaml": (CHAT, REPORT),
    "samples.jsonl": (REPORT,),
    "final/adapter_config.json": (CHAT, NEXT),
    "final/adapter_model.safetensors": (CHAT, REPORT, NEXT),
    "final/chat_template.jinja": (CHAT,),
    "final/tokenizer.json": (CHAT, NEXT),
    "final/tokenizer_config.json": (CHAT,),
}
# and who doesn't, so that nothing changes for him
UNREAD = {"metrics.jsonl": CHAT, "results.json": CHAT, "data.json": REPORT, "loss.png": REPORT, "final/README.md": CHAT}


def ask(door, root, reader):
    if reader == CHAT:
        return door("chat.py", "run=support/sft", f"run.root={root}", "max_new_tokens=2", stdin="hello\n/quit\n")
    if reader == REPORT:
        return door("report.py", "recipe=support", f"run.root={root}")
    return door("train.py", *settings("dpo", root), "run.stage=after")


@pytest.mark.parametrize(("name", "how"), product(READ, BREAKS), ids=lambda value: getattr(value, "__name__", value))
def test_what_is_read_is_verified(whole, below, door, seen, name, how):
    """By one of its readers in turn, each at least once; FAULTS=all asks all of them."""
    root = below("")
    run = root / "support/sft"
    how(run / name)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    turn = BREAKS.index(how) % len(READ[name])
    for reader in READ[name] if ALL else READ[name][turn : turn + 1]:
        done = ask(door, root, reader)
        if (name, how) == ("run.json", flipped) and done.returncode == 0:
            continue  # the bit was in a word that no one needs
        assert done.returncode == 3 and str(run / name) in done.stderr, (reader, done.stdout, done.stderr)
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    seen("refused with the file's name, nothing touched")


@pytest.fixture(scope="module")
def answers(whole, door):
    """What a reader says of the unbroken runs."""
    return {reader: ask(door, whole, reader).stdout for reader in set(UNREAD.values())}


@pytest.mark.parametrize(
    ("name", "how"),
    product(UNREAD, BREAKS) if ALL else zip(UNREAD, BREAKS, strict=True),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_not_read_hinders_nobody(whole, below, answers, door, seen, name, how):
    root = below("")
    how(root / "support/sft" / name) if (root / "support/sft" / name).is_file() else None
    done = ask(door, root, UNREAD[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(str(root), "") == answers[UNREAD[name]].replace(str(whole), "")
    seen("not needed: as the unbroken run")


@pytest.mark.parametrize(
    ("name", "how"), product(("metrics.jsonl", "results.json"), BREAKS), ids=lambda v: getattr(v, "__name__", v)
)
def test_a_verdict_rests_on_what_the_run_wrote(below, seen, name, how):
    run = below("") / "support/dpo"
    assert measured(run, "held_out_loss") is not None
    how(run / name)
    with pytest.raises(DataError, match=rf"{run}/{name} .*\n  fix: bring it back from a copy, or python \S*train.py "):
        measured(run, "held_out_loss")
    seen("refused with the file's name, nothing touched")


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_checkpoint_is_left_out_by_name(whole, tmp_path, seen, method):
    """Whichever of its files it is; the one before it is taken."""
    run = tmp_path / "run"
    listed = sorted(files.listing(whole / "support" / method / "checkpoint-4"))
    assert len(listed) >= 5
    for name, how in product(listed, BREAKS):
        shutil.rmtree(run, ignore_errors=True)
        for number in (2, 4):
            shutil.copytree(whole / "support" / method / f"checkpoint-{number}", run / f"checkpoint-{number}")
        how(run / "checkpoint-4" / name)
        found, left_out = files.newest(run)
        assert found == run / "checkpoint-2"
        assert list(left_out) == [run / "checkpoint-4"] and f"checkpoint-4/{name} " in left_out[run / "checkpoint-4"]
        seen("left out by name, the checkpoint before it taken")


@pytest.mark.parametrize(
    ("method", "how"), list(zip(METHODS * 2, BREAKS, strict=False)), ids=lambda v: getattr(v, "__name__", v)
)
def test_a_run_goes_on_from_the_checkpoint_before_and_ends_the_same(whole, below, door, seen, method, how):
    root = below(method)
    run = root / "support" / method
    assert door("train.py", *settings(method, root), trap=("arm", "half of final", "kill")).returncode < 0
    name = next(name for name in files.listing(run / "checkpoint-4") if name.endswith((".safetensors", "optimizer.pt")))
    how(run / "checkpoint-4" / name)
    again = door("train.py", *settings(method, root))
    assert again.returncode == 0 and f"left out checkpoint-4: {run}/checkpoint-4/{name}" in again.stdout, again.stderr
    assert left(run) == left(whole / "support" / method)
    seen("left out by name, then equal to the unbroken run")
