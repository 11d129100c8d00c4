"""Every command that README, docs and recipes show is read as its door reads it, and a block can be pasted as it stands."""

import dataclasses
import functools
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from rlhf import door
from rlhf.compare.trials import Comparison
from rlhf.config import REPO, Stage, compose_config, to_stage
from rlhf.errors import ConfigError
from rlhf.methods import METHODS
from rlhf.preflight.plan import resolve
from rlhf.preflight.settings import check_settings
from rlhf.rounds.plan import Rounds
from rlhf.runs import record
from rlhf.runs.pipeline import Pipeline
from tests.helpers import door_module

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "recipes").rglob("README.md"))]
STAGES = ["base", "sft", "reward", "judge", "reward-feedback", "dpo", "ppo"]
DOOR = re.compile(r"(?:python|accelerate launch [^`]*?) src/\w+\.py")
COMMAND = re.compile(rf"(?:srun [^`]*? )?{DOOR.pattern}|make [a-z]+")
PLACEHOLDERS = {"<name>": "support", "<recipe>/<stage>": "support/dpo", "=N": "=1"}


def blocks(text: str) -> list[list[str]]:
    """The commands of a page: those of each fenced block together, then each that stands in a sentence."""
    fence = re.compile(r"^ *```.*?\n(.*?)^ *```", re.S | re.M)
    sentences = re.findall(r"`([^`]+)`", fence.sub("", text))
    found = [re.sub(r"\\\n\s*", "", block).splitlines() for block in fence.findall(text)]
    found += [[" ".join(sentence.split())] for sentence in sentences]
    return [[line.strip() for line in block if COMMAND.match(line.strip())] for block in found]


pipeline = functools.cache(Pipeline)


@functools.cache
def written(command: str) -> list[Stage]:
    """The stages that a command runs; raises where its door would refuse it."""
    return list(_written(command))


def _written(command: str) -> Iterator[Stage]:
    for mark, value in PLACEHOLDERS.items():
        command = command.replace(mark, value)
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (REPO / "Makefile").read_text()
        return
    script = next(index for index, word in enumerate(words) if word.startswith("src/"))
    name, given = Path(words[script]).stem, words[script + 1 :]
    module = door_module(name)
    if name == "train":
        yield from _trained(door.hydra_arguments(given, str(module.__doc__)))
        return
    own = door.arguments(module.Arguments, given, str(module.__doc__))
    if name == "plan":
        resolve(own.overrides)
    elif name == "compare":
        settings = {arm: list(values) for arm, values in (("dpo", own.beta), ("ppo", own.kl_coef)) if values}
        rates = {"dpo": own.dpo_learning_rate, "ppo": own.ppo_learning_rate}
        comparison = Comparison(own.recipe, own.overrides, own.seeds, settings, own.name, rates)
        yield from (trial.stage for trial in comparison.trials())
    elif name == "pipeline" or (name == "reproduce" and own.page is None):
        plan = pipeline(own.recipe, tuple(own.overrides), tuple(getattr(own, "stages", None) or ()))
        yield from () if getattr(own, "check", False) else map(plan.stage, plan.order)
    elif name == "benchmark":
        module.size_of(own)
    elif name == "rounds":
        plan = Rounds(own.recipe, own.overrides, own.rounds, own.labels, own.seeds[:1], own.replies, own.name, own.arms)
        yield from (run.stage for points in plan.points.values() for one in points for run in (one.reward, one.policy))
    elif name in ("annotate", "collect", "feedback", "serve"):
        module.check(own)
    elif name == "export":
        stage = to_stage(compose_config([f"recipes={own.run}"]))
        assert METHODS[stage.method.name].leaves == "policy" or "gguf" not in own.to
    elif name == "evaluate":
        stage = to_stage(compose_config([f"recipes={own.run}"]))
        assert (own.tasks is None, own.file is None) == (
            METHODS[stage.method.name].leaves == "reward",
            own.tasks is not None,
        )
    if getattr(own, "page", None) is not None:
        assert (REPO / own.page).is_file()


def _trained(given: list[str]) -> Iterator[Stage]:
    """One stage, or those of a sweep, whose runs lie in folders of their own."""
    flags = {"-m", "--multirun", "--cfg", "--resolve", "--help", "job"}
    sweep = {"-m", "--multirun"} & set(given)
    own = [argument for argument in given if argument not in flags and not argument.startswith("hydra.sweep.")]
    settings = [argument.partition("=")[::2] for argument in own]
    choices = [value.split(",") if sweep and value[:1] not in "[{" else [value] for _, value in settings]
    for values in product(*choices):
        stage = to_stage(compose_config([f"{key}={v}" for (key, _), v in zip(settings, values, strict=True)]))
        here = dataclasses.replace(stage.hardware, device="cpu", precision="fp32")
        check_settings(dataclasses.replace(stage, hardware=here), planned=STAGES)
        if not sweep and "--cfg" not in given:
            yield stage


def collisions(commands: list[str]) -> list[str]:
    """Commands of a block that would find a run with other inputs in their folder; each command is visited."""
    runs: dict[Path, tuple[str, object]] = {}
    found = []
    for command in commands:
        for stage in written(command):
            inputs = record.inputs(stage)
            first, before = runs.setdefault(stage.path, (command, inputs))
            if before != inputs:
                found.append(f"{command}: {stage.path} was written by {first}")
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_a_page_can_be_pasted(page):
    text = page.read_text()
    visited = [block for block in blocks(text) if block]
    doors = [command for block in visited for command in block if not command.startswith("make")]
    assert len(doors) == len(DOOR.findall(" ".join(text.split()))), "a command is not visited"
    for block in visited:
        assert collisions(block) == []


def test_the_commands_are_many_and_of_every_door():
    commands = [command for page in PAGES for block in blocks(page.read_text()) for command in block]
    shown = {match[1] for command in commands if (match := re.search(r"src/(\w+)\.py", command))}
    assert len(commands) >= 67 and {path.stem for path in REPO.glob("src/*.py")} - {"report"} <= shown


def test_a_block_that_writes_a_folder_twice_is_found():
    """As README had it: the last two of four lines write runs/mine/dpo, and the second is refused."""
    pairs, mine = (
        "python src/train.py model=mistral_7b hardware=gpu_24gb run.recipe=mine method=dpo",
        "dataset.path=a.jsonl",
    )
    twice = [f"{pairs} dataset=ultrafeedback", f"{pairs} dataset=local_pairs {mine}"]
    assert len(collisions(twice)) == 1 and "runs/mine/dpo was written by" in collisions(twice)[0]
    assert collisions([twice[0], f"{twice[1]} run.stage=dpo-mine"]) == []
    assert collisions([twice[0], twice[0]]) == []
    assert (
        len(collisions(["python src/pipeline.py recipe=support", "python src/train.py recipe=support/dpo seed=2"])) == 1
    )


@pytest.mark.parametrize(
    "command",
    [
        "python src/chat.py runs=support/ppo",
        "python src/report.py recipe=support readme=README.md",
        "python src/benchmark.py promts=3",
        "python src/plan.py recipe=support/dppo",
        "python src/reproduce.py index=recipes/README.md",
        "python src/compare.py recipe=support root=x",
        "python src/evaluate.py run=support/dpo task=[mmlu]",
        "python src/export.py run=support/dpo to=[onnx]",
        "python src/collect.py run=support/sft choose=unsure",
        "python src/feedback.py recipe=support labels=400",
        "python src/annotate.py recipe=support mode=terminal",
        "python src/pipeline.py recipe=support stages=[dppo]",
        "python src/train.py --recipe support/dpo",
    ],
)
def test_a_command_that_its_door_refuses_is_found(command):
    from hydra.errors import HydraException

    with pytest.raises((ConfigError, HydraException)):
        collisions([command])
