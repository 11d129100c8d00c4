"""Every kind of failure leaves with its exit code and at most six lines, and the likeliest first mistakes with the right hint."""

import errno
import json
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch

from rlhf import door as doors
from rlhf.config import REPO
from rlhf.errors import ConfigError, DataError, GuardStop, NonFinite, Preempted, ResourceError

SCRIPTS = sorted(path.name for path in (REPO / "src").glob("*.py"))


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (GuardStop("x"), 4),
        (NonFinite("loss/policy_avg", float("nan"), 3), 4),
        (ResourceError("x"), 5),
        (MemoryError("x"), 5),
        (torch.OutOfMemoryError("x"), 5),
        (type("OutOfMemoryError", (Exception,), {})("of a queue, not of memory"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 5),
        (Preempted("x"), 75),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error, code, capsys):
    with pytest.raises(SystemExit) as left:
        doors._leave(error)
    assert left.value.code == code
    if code not in (1, 130):
        assert len(capsys.readouterr().err.splitlines()) <= 6


def test_an_error_that_is_its_own_cause_is_told_all_the_same():
    from rlhf.door import translate

    error = ValueError("x")
    error.__cause__ = error
    assert translate(error) is error


def test_a_long_list_of_problems_is_cut(capsys):
    with pytest.raises(SystemExit):
        doors._leave(ConfigError("\n".join(f"problem {i}" for i in range(20))))
    assert capsys.readouterr().err.splitlines()[-1] == "… and 15 more lines"


@dataclass
class Arguments:
    recipe: str
    seeds: list[int] = field(default_factory=lambda: [1, 2])
    beta: list[float] | None = None
    jobs: int | None = None
    check: bool = False
    size: Literal["small", "large"] = "small"
    run_root: str = "runs"
    overrides: list[str] = field(default_factory=list)


def read(*given):
    return doors.arguments(Arguments, given, "What it does.\n\n  python src/toy.py recipe=support [seeds=[1,2]]\n")


def test_arguments_have_the_types_of_their_fields():
    assert read("recipe=a") == Arguments("a")
    own = read("recipe=1e3", "seeds=[3, 4]", "beta=0.1,2", "jobs=2", "check=true", "size=large", "run.root=x")
    assert own == Arguments("1e3", [3, 4], [0.1, 2.0], 2, True, "large", "x")
    assert isinstance(own.beta[1], float)
    settings = ["seed=2", "run.stage=x", "dpo.seed=3", "+method.args.x=1", "model=qwen3_8b"]
    assert read("recipe=a", "seeds=3", *settings) == Arguments("a", [3], overrides=settings)


@pytest.mark.parametrize(
    "given, message",
    [
        ((), "recipe is missing\n  python src/toy.py recipe=support [seeds=[1,2]]"),
        (("recipe=a", "seeds=[1,x]"), "seeds=[1,x]: 'x' is not a whole number"),
        (("recipe=a", "seeds=[1,0]"), "seeds=[1,0]: '0' is not a whole number from 1"),
        (("recipe=a", "seeds=[1.5]"), "'1.5' is not a whole number"),
        (("recipe=a", "seeds=[]"), "seeds=[]: '' is not a whole number"),
        (("recipe=a", "beta=[0.1,]"), "beta=[0.1,]: '' is not a number"),
        (("recipe=a", "jobs="), "jobs=: '' is not a whole number"),
        (("recipe=a", "check=yes"), "check=yes: 'yes' is not true or false"),
        (("recipe=a", "size=larg"), "'larg' is not one of small, large; did you mean large?"),
        (("recipe=",), "recipe=: a value is empty"),
        (("recpe=a",), "recpe is not a key; did you mean recipe"),
        (("recipe=a", "sedes=[1,2]"), "sedes is not a key; did you mean seeds"),
        (("recipe=a", "hardwar=cpu"), "hardwar is not a key; did you mean hardware"),
        (("recipes=a",), "recipes=a: recipes= is now recipe=\n  fix: recipe=a"),
        (("recipe=a", "root=x"), "root=x: root= is now run.root=\n  fix: run.root=x"),
        (("recipe=a", "readme=x"), "readme is not a key"),
        (("recipe",), "'recipe' is not key=value\n  python src/toy.py recipe=support"),
        (("--recipe", "a"), "'--recipe' is not key=value"),
    ],
)
def test_a_bad_argument_says_what_is_meant(given, message):
    with pytest.raises(ConfigError) as refused:
        read(*given)
    assert message in str(refused.value)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder outside the repository with two runs in its runs/."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("support/sft", "support/ppo"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "run.json").write_text(json.dumps({"status": "running", "command": ["python"]}))
    return folder


@pytest.mark.parametrize(
    "command, message",
    [
        ("train.py", "recipe is missing\n  python src/train.py recipe=support/dpo"),
        (
            "train.py recipe=support",
            "recipe=support: a stage is missing\n  allowed: support/base, support/dpo, support/ppo",
        ),
        ("train.py recipe=support", "fix: recipe=support/base, or all stages: python src/pipeline.py recipe=support"),
        ("train.py recipes=support", "recipe=support: a stage is missing"),
        ("train.py recipe=suport/dpo", "recipe=suport/dpo: no such stage of a recipe; did you mean support/dpo"),
        ("train.py recipe=mine", "no such stage of a recipe\n  allowed: guanaco"),
        ("train.py recipe=mine", "fix: a folder recipes/mine/, or run.recipe=mine to call your runs so"),
        ("train.py dataset.päth=x", "dataset.päth is not a key; did you mean path"),
        ("train.py seed=1(", "seed=1(: can't be read"),
        ("train.py seed=1,2", "several values make a sweep"),
        ("train.py recipe=zephyr", "did you mean zephyr-7b/dpo, zephyr-7b/ppo, zephyr-7b/sft"),
        ("train.py recpe=support/dpo", "recpe is not a key; did you mean recipe"),
        ("train.py +recipe=support/dpo", "Multiple values for recipes"),
        ("train.py root=x", "root is not a key; did you mean run.root"),
        ("train.py --recipe support/dpo", "--recipe: settings have no dashes\n  fix: recipe=support/dpo"),
        ("train.py --hardware.device=cuda", "fix: hardware.device=cuda"),
        ("train.py recipe support/dpo", "'recipe' is not key=value or group=option"),
        ("train.py model=qwen", "model=qwen: no such option; did you mean qwen3_8b, qwen3_0.6b, qwen2.5_0.5b"),
        ("train.py model=llama", "did you mean llama_7b, llama3.1_8b, llama3.2_1b"),
        ("train.py dataset=ultra", "did you mean ultrachat, ultrafeedback, ultrafeedback_trl"),
        ("train.py method=orpo", "allowed: dpo, kto, ppo, reward, sft"),
        ("train.py --experimental-rerun job.pickle", "loads a pickle"),
        ("plan.py", "recipe is missing\n  python src/plan.py recipe=<recipe>/<stage>"),
        ("plan.py recipe=support", "a stage is missing"),
        ("plan.py model=qwen", "did you mean qwen3_8b"),
        ("pipeline.py", "recipe is missing\n  python src/pipeline.py recipe=support"),
        ("pipeline.py recipes=support", "recipes= is now recipe=\n  fix: recipe=support"),
        ("pipeline.py recipe=support/dpo", "fix: recipe=support stages=[dpo]"),
        ("pipeline.py recipe=support stges=[sft]", "stges is not a key; did you mean stages"),
        ("pipeline.py recipe=support run.rot=x", "did you mean root"),
        ("compare.py", "recipe is missing\n  python src/compare.py recipe=support"),
        ("compare.py recipe=support root=x", "root= is now run.root=\n  fix: run.root=x"),
        ("compare.py recipe=support jugde=x", "jugde is not a key; did you mean judge"),
        ("compare.py recipe=support seeds=one", "seeds=one: 'one' is not a whole number"),
        ("reproduce.py", "recipe is missing\n  python src/reproduce.py recipe=support"),
        ("reproduce.py index=recipes/README.md", "index= is now page=\n  fix: page=recipes/README.md"),
        ("report.py", "recipe is missing\n  python src/report.py recipe=support"),
        ("report.py recipe=support readme=README.md", "readme= is now page=\n  fix: page=README.md"),
        ("report.py recipe=support seed=2", "seed is not a key"),
        ("report.py recipe=support", "runs/support has no finished stage with replies"),
        ("chat.py", "run is missing\n  python src/chat.py run=support/ppo"),
        ("chat.py support/ppo", "'support/ppo' is not key=value\n  python src/chat.py run=support/ppo"),
        (
            "chat.py run=support",
            "runs/support is not a run; did you mean support/ppo, support/sft?\n  runs: support/ppo, support/sft",
        ),
        ("chat.py run=support/ppo root=x", "root= is now run.root="),
        ("chat.py run=support/ppo temperature=hot", "temperature=hot: 'hot' is not a number"),
        ("benchmark.py root=x", "root= is now run.root="),
        ("benchmark.py promts=8", "promts is not a key; did you mean prompts"),
    ],
)
def test_the_likeliest_first_mistakes_end_in_the_right_hint(elsewhere, monkeypatch, capsys, command, message):
    """From a folder outside the repository: `runs` is the one there."""
    script, *given = command.split()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "argv", [str(REPO / "src" / script), *given])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(sys.argv[0], run_name="__main__")
    told = capsys.readouterr().err
    assert left.value.code == 2 and message in told and len(told.splitlines()) <= 6, told


@pytest.mark.parametrize(
    ("error", "code", "seeds"), [(DataError("x: bad"), 3, [1, 2, 3]), (Preempted("x"), 75, [1, 2])]
)
def test_a_sweep_goes_on_after_a_failure_and_ends_in_a_table(tmp_path, monkeypatch, capsys, error, code, seeds):
    """But not after a signal. Folders are flat and say what is swept; the exit code is that of the first failure."""
    ran = {}

    def run_stage(cfg, overrides):
        ran[cfg.seed] = cfg.run.stage
        assert sys.argv[1:] == command[1:], "what run.json keeps as the command is what was typed"
        if cfg.seed == 2:
            raise error

    monkeypatch.setattr("rlhf.runs.stage.run_stage", run_stage)
    monkeypatch.setattr(doors.sweep, "trials", [])
    root = tmp_path / "räume (1)"
    command = [str(REPO / "src/train.py"), "recipe=support/base", f"run.root={root}", "-m", "seed=1,2,3"]
    monkeypatch.setattr(sys, "argv", list(command))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(sys.argv[0], run_name="__main__")
    told = capsys.readouterr()
    assert left.value.code == code and ran == {seed: f"base-sweep/seed-{seed}" for seed in seeds}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.out.splitlines() if line.startswith("|")]
    assert [row[:1] + row[3:4] for row in rows[2:]] == [[str(n), str(code if n == 1 else 0)] for n in range(len(seeds))]
    assert rows[3] == ["1", "seed=2", f"{root}/support/base-sweep/seed-2", str(code), str(error)]
    assert f"error: {error}" in told.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script):
    """Each door prints what it is for; train.py's help is Hydra's, with the groups."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']; sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as left: assert not left.code\n"
        "assert not {'torch', 'trl', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(REPO / "src" / script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and f"python src/{script}" in done.stdout, done.stderr
