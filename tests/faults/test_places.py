"""Two who start the same run, and runs in places that are moved, linked, taken, or can't be written."""

import json
import os
import shutil
import signal
import time

import pytest

from rlhf.config import REPO
from tests.faults.tiny import METHODS, left, settings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("method", "starters"), list(zip(METHODS, (2, 3, 4, 2, 5), strict=True)))
def test_of_several_starters_one_writes(whole, below, door, tmp_path, seen, method, starters):
    root = below(method)
    started = []
    for number in range(starters):
        folder = tmp_path / str(number)
        folder.mkdir()
        started.append(door.start("train.py", *settings(method, root), folder=folder))
    codes = [one.wait() for one in started]
    assert sorted(codes) in ([0] + [5] * (starters - 1), [0, 2] + [5] * (starters - 2)), (
        codes
    )  # 2: it had ended already
    for number, code in enumerate(codes):
        said = (tmp_path / str(number) / "stderr").read_text()
        assert code == 0 or f"{root}/support/{method} " in said, said
    assert left(root / "support" / method) == left(whole / "support" / method)
    seen("one writes, the others are told who")


def test_a_pipeline_owns_its_stages(below, door, tmp_path, seen):
    root = below("sft")
    tiny = [word for word in settings("", root) if not word.startswith("recipe=")]
    commands = {"train.py": settings("sft", root), "pipeline.py": ["recipe=support", "stages=[sft]", *tiny]}
    running = door.start("pipeline.py", *commands["pipeline.py"], folder=tmp_path)
    while not (root / "support/sft/run.json").exists():
        assert running.poll() is None
        time.sleep(0.02)
    stage = json.loads((root / "support/.lock-sft").read_text())["process"]
    os.kill(stage, signal.SIGSTOP)  # until the others have come
    for second, command in commands.items():
        late = door(second, *command)
        assert late.returncode == 5 and "is being written by process" in late.stderr, late.stderr
        seen("one writes, the others are told who")
    os.kill(stage, signal.SIGCONT)
    assert running.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_pipeline_ends_its_stage_and_the_same_command_goes_on(
    whole, below, door, tmp_path, seen, number
):
    root = below("sft")
    command = ["recipe=support", "stages=[sft]", *settings("", root)[1:]]
    running = door.start("pipeline.py", *command, folder=tmp_path)
    while not (root / "support/sft/metrics.jsonl").exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait() == {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    script = "train.py" if number == signal.SIGKILL else "pipeline.py"  # the first starts sooner
    command = settings("sft", root) if script == "train.py" else command
    again = door(script, *command)  # at once: what was started is gone, or this would be refused
    for _ in range(50):
        if again.returncode != 5:
            break
        time.sleep(0.1)  # the kernel is still at it
        again = door(script, *command)
    assert again.returncode == 0, again.stderr
    assert left(root / "support/sft") == left(whole / "support/sft")
    seen(f"{signal.Signals(number).name} to the pipeline: no orphan, then equal to the unbroken run")


@pytest.mark.parametrize("how", ["moved", "linked from above"])
def test_runs_may_lie_elsewhere(whole, below, door, tmp_path, seen, how):
    """`runs/` is moved, or a link to it is used; the runs themselves may not be links."""
    root = below("ppo")
    place = tmp_path / "elsewhere"
    root.rename(place) if how == "moved" else place.symlink_to(root)
    done = door("train.py", *settings("ppo", place))
    assert done.returncode == 0, done.stderr
    assert left(place / "support/ppo") == left(whole / "support/ppo")
    seen("elsewhere: equal to the unbroken run")


def link(path, root):
    (root / "elsewhere").mkdir()
    path.symlink_to(root / "elsewhere")


def nested(path, root):
    shutil.copytree(root / "support/base", path / "inner")


def another(path, root):
    shutil.copytree(root / "support/base", path)


def papers(path, root):
    path.mkdir()
    (path / "thesis.tex").write_text("x")


@pytest.mark.parametrize("what", [link, nested, another, papers, lambda path, root: path.write_text("x")])
@pytest.mark.parametrize("more", [[], ["run.overwrite=true"]])
def test_what_is_not_a_run_of_this_stage_is_left_alone(below, door, seen, what, more):
    root = below("sft")
    what(root / "support/sft", root)
    before = sorted(root.rglob("*"))
    done = door("train.py", *settings("sft", root), *more)
    assert done.returncode == 2 and f"{root}/support/sft " in done.stderr and "fix: run.stage=sft-2" in done.stderr
    assert sorted(root.rglob("*")) == before
    seen("refused with the file's name, nothing touched")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (f"run.root=/tmp/{'x' * 300}", "run.root=/tmp/xxxxxxxxxxxxxxx…: has 300 bytes in the name of a folder"),
        (f"run.stage={'x' * 300}", "run.stage=xxx"),
        (f"run.recipe={'x' * 300}", "run.recipe=xxx"),
        (f"model.path=/tmp/{'x' * 300}", "model.path=/tmp/xxx"),
        (f"dataset.path=rows/{'ü' * 200}.jsonl", "has 406 bytes in the name"),
        ("run.stage=.", "run.stage='.': must be a plain folder name"),
        ("run.stage=../sft", "run.stage='../sft': must"),
        ("run.stage=/tmp/sft", "run.stage='/tmp/sft': must"),
        ("run.recipe=..", "run.recipe='..': must"),
        ("run.stage=''", "run.stage='': must"),
        ("seed=-1", "seed=-1"),
        ("batch_size=0", "batch_size=0"),
        ("method.args.learning_rate=nan", "method.args.learning_rate=nan"),
        ("method.args.learning_rate=-1", "method.args.learning_rate=-1"),
        ("method.args.max_grad_norm=-1", "method.args.max_grad_norm=-1"),
        ("method.args.warmup_steps=-5", "method.args.warmup_steps=-5"),
        ("method.args.save_steps=0", "method.args.save_steps=0"),
        ("adapter.args.r=0", "adapter.args.r=0"),
        ("adapter.args.target_modules=[nope]", "adapter.args.target_modules"),
        ("evaluation.prompts=-1", "evaluation.prompts=-1"),
        ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens=0"),
        ("hardware.devices=4", "hardware.devices=4"),
        ("batch_size=3", "batch_size=3"),
        ("method.args.push_to_hub=true", "method.args.push_to_hub=true"),
        ("method.args.optim=adan", "method.args.optim=adan: refused by trl.SFTConfig"),
        ("+method.args.optim_args=x", "method.args.optim_args=x"),
        ("+method.args.lr_scheduler_kwargs={x: 1}", "method.args.lr_scheduler_kwargs={x: 1}"),
        ("+method.args.dataloader_persistent_workers=true", "method.args.dataloader_persistent_workers=true"),
        ("+method.args.dataloader_multiprocessing_context=x", "method.args.dataloader_multiprocessing_context=x"),
        ("+method.args.log_level=x", "method.args.log_level=x: not one of"),
        ("+method.args.torch_compile_backend=x", "method.args.torch_compile_backend=x"),
        ("+method.args.torch_compile_mode=x", "method.args.torch_compile_mode=x"),
        ("+method.args.use_liger_kernel=true", "method.args.use_liger_kernel=true: the package is not there"),
        ("+method.args.label_smoothing_factor=0.1", "method.args.label_smoothing_factor=0.1: the losses here"),
        ("+method.args.accelerator_config=x", "method.args.accelerator_config=x: refused by trl.SFTConfig"),
        ("+method.args.output_dir=x", "method.args.output_dir"),
        ("+x=1", "x"),
        ("+dataset.x=1", "dataset.x"),
        ("dataset.max_length=0", "dataset.max_length=0"),
        ("model.path=nowhere/at/all", "model.path=nowhere/at/all"),
    ],
)
def test_what_cannot_work_is_refused_and_the_old_run_stays(below, door, seen, more, said):
    """Also with run.overwrite=true, which would have replaced a finished run."""
    root = below("")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    kept = [word for word in settings("sft", root) if word.partition("=")[0] != more.lstrip("+").partition("=")[0]]
    done = door("train.py", *kept, more, "run.overwrite=true")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    seen("refused by its setting, nothing touched")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("+method.args.f_divergence_type=x", "method.args.f_divergence_type=x: not one of reverse_kl"),
        ("+method.args.use_weighting=true", "method.args.use_weighting=true: TRL 1.12 weights"),
        ("+method.args.activation_offloading=true", "method.args.activation_offloading=true: there is no GPU"),
        ("+method.args.sync_ref_model=true", "method.args.sync_ref_model=true: "),
        ("+method.args.gradient_checkpointing_kwargs=x", "method.args.gradient_checkpointing_kwargs=x: is no mapping"),
        ("+method.args.length_column_name=x", "method.args.length_column_name=x: rows have their length"),
        ("+method.args.parallelism_config=x", "method.args.parallelism_config=x: "),
        ("+method.args.torch_compile=true", "method.args.torch_compile=true: TRL 1.12 finds no adapter"),
        ("+method.args.metric_for_best_model=x", "method.args.metric_for_best_model=x: "),
    ],
)
def test_what_dpo_cannot_work_with_names_its_setting(below, door, seen, more, said):
    root = below("dpo")
    done = door("train.py", *settings("dpo", root), more)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    seen("refused by its setting")


@pytest.mark.parametrize("place", ["/proc/no/runs", "/dev/null/runs"])
def test_a_place_that_cannot_be_written_is_named(door, seen, place):
    done = door("train.py", *settings("base", place))
    assert done.returncode == 2 and f"run.root={place}: {place.rpartition('/')[0]}" in done.stderr, done.stderr
    seen("refused by its setting, nothing touched")


def test_a_checkout_may_be_read_only(whole, below, door, seen):
    root = below("sft")
    done = door("train.py", *settings("sft", root), trap=("read_only", str(REPO)))
    assert done.returncode == 0, done.stderr
    assert left(root / "support/sft") == left(whole / "support/sft")
    seen("read-only checkout: equal to the unbroken run")


def test_git_may_be_missing(whole, below, door, seen, tmp_path):
    root = below("dpo")
    (tmp_path / "bin").mkdir()
    done = door("train.py", *settings("dpo", root), trap=("environment", "PATH", str(tmp_path / "bin")))
    assert done.returncode == 0, done.stderr
    assert left(root / "support/dpo") == left(whole / "support/dpo")
    seen("without git: equal to the unbroken run")


def test_any_working_directory_will_do(whole, below, door, seen, tmp_path):
    root = below("sft")
    done = door("train.py", *settings("sft", root), trap=("stand_in", str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert left(root / "support/sft") == left(whole / "support/sft")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    seen("another working directory: equal to the unbroken run")
