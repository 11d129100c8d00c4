"""All stages of a recipe, each in a process of its own: order, what is up to date, and which override goes where."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import cache

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rlhf.config import Launcher, Stage, compose_config, needs, options, to_stage
from rlhf.errors import ConfigError, Refusal, nearest
from rlhf.methods import METHODS
from rlhf.preflight.hub import check_repositories
from rlhf.preflight.settings import check_settings
from rlhf.runs import cluster, launcher, record
from rlhf.runs.lock import hold


class Pipeline:
    """A recipe's stages in the order in which they can run, each with its overrides."""

    def __init__(self, recipe: str, overrides: Sequence[str], only: Sequence[str] | None = None) -> None:
        self.recipe = recipe
        names = stages_of(recipe)
        for name in only or ():
            if name not in names:
                hint = f"{nearest(name, names)}\n  stages: {', '.join(names)}"
                raise ConfigError(f"stages={name} is not a stage of {recipe}{hint}")
        given = [o for o in overrides if re.match(r"\+*launcher[=.]", o)]
        self.launcher = (
            to_stage(compose_config([f"recipes={recipe}/{names[0]}", *given])).launcher if given else Launcher()
        )
        overrides = [o for o in overrides if o not in given]
        scoped = {name: [o.removeprefix(f"{name}.") for o in overrides if o.startswith(f"{name}.")] for name in names}
        common = [o for o in overrides if o.partition(".")[0] not in names]
        for name, own in scoped.items():
            for override in (o for o in own if re.match(r"\+*launcher[=.]", o)):
                raise Refusal(
                    f"{name}.{override.partition('=')[0]}",
                    override.partition("=")[2],
                    "is one for all stages",
                    fix=override,
                )

        @cache  # what a stage knows is mostly what it is composed of
        def composed(name: str, *given: str) -> DictConfig:
            return compose_config([f"recipes={recipe}/{name}", *given])

        def known(name: str) -> list[str]:
            return common if _knows(composed, name, common) else [o for o in common if _knows(composed, name, [o])]

        self.overrides = {name: [*known(name), *scoped[name]] for name in names}
        for override in common:
            if not any(override in given for given in self.overrides.values()):
                compose_config([f"recipes={recipe}/{names[0]}", override])  # raises, with the reason
                raise ConfigError(f"{override}: no stage of {recipe} knows this key\n  stages: {', '.join(names)}")
        self.configs = {name: composed(name, *self.overrides[name]) for name in names}
        self.order = [name for name in _ordered(self.configs, recipe) if not only or name in only]
        for name in self.order:
            check_settings(self.stage(name), planned=self.order)

    def stage(self, name: str) -> Stage:
        return to_stage(self.configs[name])

    def check_arguments(self, names: Sequence[str]) -> None:
        """Refuse a trainer's setting of the last stage before the first one runs. Imports TRL, which takes seconds."""
        if not names:
            return
        from rlhf.methods.arguments import check_arguments
        from rlhf.process import quiet

        quiet()
        for name in names:
            try:
                check_arguments(self.stage(name))
            except ConfigError as error:
                raise ConfigError(f"{self.recipe}/{name}: {error}") from error

    def command(self, name: str, *more: str) -> list[str]:
        """What a user would type for this stage."""
        return ["python", "src/train.py", f"recipe={self.recipe}/{name}", *self.overrides[name], *more]


def stages_of(recipe: str) -> list[str]:
    """The stages of a recipe: the files in its folder."""
    known = sorted({option.rpartition("/")[0] for option in options("recipes")})
    if recipe in options("recipes"):
        name, _, stage = recipe.partition("/")
        raise Refusal("recipe", recipe, "one stage of a recipe", fix=f"recipe={name} stages=[{stage}]")
    if recipe not in known:
        raise ConfigError(f"recipe={recipe} is not a recipe{nearest(recipe, known)}\n  recipes: {', '.join(known)}")
    return [option.rpartition("/")[2] for option in options("recipes") if option.rpartition("/")[0] == recipe]


def _knows(composed: Callable[..., DictConfig], name: str, overrides: Sequence[str]) -> bool:
    """Whether the configuration of this stage has a place for each of the overrides."""
    try:
        cfg = composed(name, *overrides)
    except (HydraException, OmegaConfBaseException):
        return False
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    args = {key.removeprefix("method.args.") for key in keys if key.startswith("method.args.")}
    if args:
        import dataclasses

        from rlhf.methods.arguments import config_class

        return args <= {field.name for field in dataclasses.fields(config_class(cfg.method.name))}
    return True


def _ordered(configs: dict[str, DictConfig], recipe: str) -> list[str]:
    """Stages after those they need, by the order of their methods in METHODS; raises on an unknown stage and on a cycle."""
    edges = {name: needs(cfg) for name, cfg in configs.items()}
    place = {name: [*METHODS, cfg.method.name].index(cfg.method.name) for name, cfg in configs.items()}
    for name, needed in edges.items():
        for other in needed:
            if other not in edges:
                what = f"${{stage:{other}}}, which is not a stage{nearest(other, edges)}"
                raise ConfigError(f"recipes/{recipe}/{name}.yaml reads {what}")
    order: list[str] = []
    while len(order) < len(edges):
        ready = [name for name in edges if name not in order and all(other in order for other in edges[name])]
        if not ready:
            waiting = ", ".join(name for name in edges if name not in order)
            raise ConfigError(f"recipes/{recipe}: these stages wait for each other: {waiting}")
        order += sorted(ready, key=lambda name: (place[name], name))
    return order


def run(plan: Pipeline) -> int:
    """Run what is missing or stale and report; returns the exit code of the first stage that fails, or 0."""
    stages = [plan.stage(name) for name in plan.order]
    own = cluster.launcher(plan.launcher, stages[0], stages[0].path.parent / "logs")
    if plan.launcher.dry_run:
        own.show([task_of(plan, name) for name in plan.order if record.state(plan.stage(name)) != "finished"])
        return 0
    hold(stages[0].path.parent, " ".join(sys.argv))
    with own:
        code = run_stages(plan, plan.order, own)
        if not code and any((stage.path / "samples.jsonl").exists() for stage in stages):
            run = stages[0].run
            words = [f"recipe={run.recipe}", f"run.root={run.root}"]
            print("\n$ python src/report.py " + shlex.join(words), flush=True)
            return launcher.Launcher.start(own, launcher.Task("report", "report.py", words))  # here, whoever trains
        return code


def run_stages(plan: Pipeline, names: Sequence[str], own: launcher.Launcher) -> int:
    """Run those of a plan's stages that are missing or stale, in order; returns the exit code of the first that fails, or 0."""
    todo = [name for name in names if record.state(plan.stage(name)) != "finished"]
    check_repositories(map(plan.stage, todo))
    plan.check_arguments(todo)
    for name in names:
        stage = plan.stage(name)
        now = "stale" if stage.run.overwrite else record.state(stage)
        shown = shlex.join(plan.command(name))
        if now == "finished":
            print(f"{plan.recipe}/{name} is finished and unchanged   ({shown})", flush=True)
            continue
        if now == "stale" and record.read_run(stage.path):
            why = record.changes(stage) or "run.overwrite=true"
            print(f"{plan.recipe}/{name} runs again: {why} changed", flush=True)
        task = task_of(plan, name)
        print(f"\n$ {task.shown()}", flush=True)
        if code := own.start(task):
            why = launcher.last_error(own.folder / f"{name}.log") if plan.launcher.name != "basic" else ""
            print(f"{plan.recipe}/{name} failed with exit code {code}: {why or shown}", file=sys.stderr)
            return code
    return 0


def task_of(plan: Pipeline, name: str) -> launcher.Task:
    return launcher.Task(name, "train.py", plan.command(name)[2:], plan.stage(name))
