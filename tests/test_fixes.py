"""What a message tells to type can be pasted into bash as it stands, and Hydra reads what was meant."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf

from rlhf.config import GROUPS, REPO, compose_config, hint
from rlhf.data import sources
from rlhf.errors import ConfigError, DataError
from rlhf.output import console
from rlhf.preflight.settings import check_settings
from rlhf.runs import record
from rlhf.shell import setting

SETTING = re.compile(r"(?<![\w'\"./-])([a-z_]+(?:\.\w+)+|seed|batch_size|" + "|".join(GROUPS) + r")=([^\s,;)]*)")


def written(node: ast.AST) -> str:
    """A text of the source, with 1 for what is put into it; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) if isinstance(part, ast.Constant) else "1" for part in node.values)
    return ""


def fixes() -> Iterator[tuple[str, str]]:
    """(file, fix) of every text behind `fix:` and every text that is called fix."""
    for file in sorted((REPO / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            place = f"{file.relative_to(REPO)}:{getattr(node, 'lineno', 0)}"
            if "fix:" in (text := written(node)):
                yield place, text.partition("fix:")[2]
            named = isinstance(node, ast.Assign) and "fix" in ast.unparse(node.targets[0])
            if named or (isinstance(node, ast.keyword) and node.arg == "fix"):
                yield from ((place, text) for inner in ast.walk(node.value) if (text := written(inner)))


def test_no_fix_breaks_bash():
    """No <placeholder>, which bash takes for a file to read, and no setting in it that wants quotes or is none."""
    texts, settings = list(fixes()), 0
    for place, text in texts:
        assert not re.search(r"(?<!')<[\w .,-]+>", text), f"{place}: {text}"
        for key, value in SETTING.findall(text) if "/ppo/" not in place else ():
            if ".1" in key:  # put in
                continue
            settings += 1
            assert hint(key) is not None or key in GROUPS, f"{place}: {key} is no setting"
            assert not value or shlex.quote(value) == value, f"{place}: {key}={value} wants quotes"
    assert len(texts) > 100 and settings > 35, (len(texts), settings)


def pasted(told: str) -> dict[str, object]:
    """The settings of a message's fix, as bash and Hydra read them."""
    fix = told.partition("fix: ")[2] or told
    words = [word.rstrip(",") for word in shlex.split(fix.partition("\n")[0]) if "=" in word]
    composed = compose_config(words)
    return {key: OmegaConf.select(composed, key) for key in (word.partition("=")[0] for word in words)}


def test_the_fix_for_one_file_and_two_splits(tmp_path, compose_stage):
    file = tmp_path / "pairs (1).jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    dataset = compose_stage("dataset=local_pairs", "method=dpo", f"dataset.path={file}").dataset
    with pytest.raises(DataError) as refused:
        list(sources.read(dataset, "test"))
    assert pasted(str(refused.value)) == {"dataset.splits.eval": "train[-5%:]", "dataset.splits.train": "train[:-5%]"}


@pytest.mark.parametrize(
    ("overrides", "fixed"),
    [
        (["method.kwise=true"], {"method.kwise": False}),
        (["method.reward_label=a (b)"], {"method.reward_label": None}),
        (["dataset=local_pairs", "dataset.path=x.jsonl", "method=dpo", "method.args.label_smoothing=0.1"],
         {"method.args.loss_type": ["robust"], "method.args.label_smoothing": 0}),
        (["recipe=support/dpo"], {}),
    ],
)  # fmt: skip
def test_the_fix_of_a_contradiction(compose_stage, overrides, fixed):
    with pytest.raises(ConfigError) as refused:
        check_settings(compose_stage(*overrides), planned=["base", "sft"] if fixed else [])
    told = str(refused.value)
    if fixed:
        assert pasted(next(line for line in told.splitlines() if "fix:" in line)) == fixed
    else:  # names where the runs are, so that the command makes the stage that is missing
        fix = next(line for line in told.splitlines() if "fix: python" in line)
        assert [word.partition("=")[0] for word in shlex.split(fix)[3:]] == ["recipe", "run.root"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.path="], "model.path= is empty"),
        (["dataset.path=", "model.path=x/y"], "dataset.path= is empty"),
        (["run.stage=" + "ü" * 200], "has 400 bytes in the name of a folder or file, and file systems take 255"),
        (["run.stage=base"], "fix: python src/train.py recipe=support/base"),
        (["run.recipe=mine", "method=dpo", "dataset=ultrafeedback", "model=gpt2_large"], "fix: method.start_from=null"),
    ],
)  # fmt: skip
def test_what_else_the_settings_say(compose_stage, words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_settings(compose_stage(*words))


def test_a_run_with_other_settings_names_them(compose_stage):
    """Old -> new for up to five; what to type keeps both, in a folder that is free."""
    common = ["dataset=local_pairs", "dataset.path=/data/räume.jsonl", "method=dpo", "model.path=a/b", "run.stage=üñí"]
    stage = compose_stage(*common, "method.args.num_train_epochs=1")
    record.Record(stage, None, False, []).status("finished")
    assert record.state(stage) == "finished"
    with pytest.raises(ConfigError, match="holds a finished run"):
        record.claim(stage)
    other = compose_stage(
        *common, "method.args.num_train_epochs=3", "dataset.columns.prompt=Frage (1)", "~method.args.lr_scheduler_type"
    )
    with pytest.raises(ConfigError) as refused:
        record.claim(other)
    told = str(refused.value)
    assert "method.args.num_train_epochs 1 -> 3" in told and 'dataset.columns.prompt prompt -> "Frage (1)"' in told
    assert "config" not in told and record.changes(stage) == ""
    assert pasted(told.partition("or ")[2]) == {"run.stage": "üñí-2"}
    stage.path.with_name("üñí-2").mkdir()
    with pytest.raises(ConfigError, match="üñí-3"):
        record.claim(other)
    many = compose_stage(*common, *(f"method.args.num_train_epochs={n}" for n in (2,)), "seed=2", "batch_size=8", "dataset.max_length=9",
                         "dataset.max_prompt_length=8", "dataset.system=x", "adapter.args.r=4")  # fmt: skip
    assert record.changes(many).count("->") == 5 and "2 more settings" in record.changes(many)


def test_of_a_misspelt_setting_on_a_run_the_spelling_is_told(compose_stage):
    """Not run.overwrite=true, which would throw the run away."""
    from rlhf.runs.stage import refuse

    common = ["dataset=local_pairs", "dataset.path=x.jsonl", "method=dpo", "method.start_from=null", "model.path=a/b"]
    record.Record(compose_stage(*common), None, False, []).status("finished")
    with pytest.raises(ConfigError, match="num_train_epoch is not a field .*did you mean num_train_epochs"):
        refuse(compose_stage(*common, "method.args.num_train_epoch=3"))
    with pytest.raises(ConfigError, match="num_train_epochs 1 -> 3.*\n  fix: run.overwrite=true"):
        refuse(compose_stage(*common, "method.args.num_train_epochs=3"))


def test_the_next_command_finds_the_run(compose_stage, tmp_path):
    """With the root that is not the default, quoted; a reward model that is of no recipe leaves a setting for PPO."""
    root = tmp_path / "my runs"
    sft = compose_stage(setting("run.root", str(root)).strip("'"), "run.stage=a (b)", "model.path=a/b")
    assert shlex.split(console.following(sft)) == ["python", "src/chat.py", "run=adhoc/a (b)", f"run.root={root}"]
    own = compose_stage("run.root=runs", "method=reward", "dataset=ultrafeedback", "model.path=a/b")
    assert shlex.split(console.following(own)) == ["method=ppo", "method.reward_model=runs/adhoc/reward/final"]
    own = compose_stage("recipe=support/reward", "run.root=runs")
    assert console.following(own) == "python src/pipeline.py recipe=support"


def test_a_python_without_the_libraries_goes_on_in_the_environment(tmp_path):
    """`python src/pipeline.py --help` of a bare Python: by .venv where there is one, else in words."""
    here = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RLHF_"))}
    for folder in ("src", "conf", "recipes"):
        (tmp_path / folder).symlink_to(REPO / folder) if folder != "src" else shutil.copytree(
            REPO / folder, tmp_path / folder
        )
    command = [sys.executable, "-S", str(tmp_path / "src/pipeline.py"), "--help"]
    lost = subprocess.run(command, capture_output=True, text=True, env=here)
    assert lost.returncode == 2 and lost.stderr.endswith("fix: make install\n"), lost.stderr
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    found = subprocess.run(command, capture_output=True, text=True, env=here)
    assert found.returncode == 0 and "python src/pipeline.py recipe=support" in found.stdout, found.stderr


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} {REPO}/src/pipeline.py --help | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")
