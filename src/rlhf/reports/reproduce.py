"""The verdict on a recipe: what its stages measured, against the published numbers that its stages state."""

import functools
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf import files
from rlhf.config import REPO, Expected, Stage, options
from rlhf.data import sources
from rlhf.errors import ConfigError, GuardStop
from rlhf.output.tables import between_markers, grid
from rlhf.public import results
from rlhf.runs import record
from rlhf.runs.pipeline import Pipeline

SAVED = "reproduction.json"


def check_stated(plan: Pipeline) -> None:
    """Refuse a recipe that has nothing to be compared with, before it trains for hours."""
    if not any(plan.stage(name).expect for name in plan.order):
        what = "no stage has `expect`, so there is nothing to reproduce"
        raise ConfigError(f"recipe={plan.recipe}: {what}\n  fix: python src/pipeline.py recipe={plan.recipe}")


def compare(plan: Pipeline) -> list[dict[str, Any]]:
    """One row for each expected metric of each stage; writes reproduction.json into the recipe's folder of runs."""
    rows, runs = [], {}
    for name in plan.order:
        stage = plan.stage(name)
        state = record.state(stage)
        if state == "finished":
            run = record.read_run(stage.path)
            runs[name] = {key: run.get(key) for key in ("id", "seed", "seconds", "machine", "git")}
        for metric, expected in stage.expect.items():
            value = None
            if state == "finished" and expected.benchmark is not None:
                value = results.measured(stage.path, expected.benchmark)
            elif state == "finished" and expected.needs is None:
                value = measured(stage.path, metric)
                if value is None:
                    why = f"left no {metric}, which expect.{metric} names"
                    raise ConfigError(f"{stage.path} {why}\n  fix: run.overwrite=true")
            word = verdict(expected, value)
            if word == "not run" and state == "stale":
                word = f"not run with these settings ({record.changes(stage)} changed)"
            elif word == "not run" and state == "finished" and expected.benchmark is not None:
                word = f"not checked: {results.command(_run(stage), expected.benchmark)}"
            rows.append({"stage": name, "metric": metric, "measured": value, "verdict": word, **asdict(expected)})
    folder = plan.stage(plan.order[0]).path.parent
    if folder.is_dir():
        content = {"recipe": plan.recipe, "overrides": plan.overrides, "rows": rows, "runs": runs}
        words = [row["verdict"] for row in rows]
        inside = "reproduced" in words and "outside" not in words
        files.write_json(folder / SAVED, content | {"reproduced": inside})
    return rows


def _run(stage: Stage) -> str:
    """How src/evaluate.py is told of a stage, with the folder of its runs where that is not the default."""
    root = f" {shlex.quote(f'run.root={stage.run.root}')}" if stage.run.root != "runs" else ""
    return f"{stage.run.recipe}/{stage.run.stage}{root}"


def table(rows: list[dict[str, Any]]) -> str:
    """Fixed-width columns that read as Markdown too."""
    cells = [["stage", "metric", "published", "measured", "band", "verdict"]]
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.4g}"
        band = "-" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g} ({row['band']})"
        cells.append([row["stage"], row["metric"], f"{row['published']:.4g}", measured, band, row["verdict"]])
    return grid(cells)


def settle(recipe: str, rows: list[dict[str, Any]]) -> None:
    """Return when all that was measured is inside its band; raise a GuardStop otherwise."""
    outside = [f"{row['stage']} {row['metric']}" for row in rows if row["verdict"] == "outside"]
    if outside:
        raise GuardStop(f"{recipe} is not reproduced: {', '.join(outside)} outside the band")
    if not any(row["verdict"] == "reproduced" for row in rows):
        waiting = [row["stage"] for row in rows if row["verdict"].startswith("not run")]
        fix = f"\n  fix: without check=true, to run {', '.join(dict.fromkeys(waiting))}"
        raise GuardStop(f"{recipe}: nothing was measured{fix if waiting else '; see `not checked`'}")


def keep(plan: Pipeline) -> Path:
    """Copy the verdict beside the recipe, where the index finds it and a commit keeps it."""
    kept = REPO / "recipes" / plan.recipe / SAVED
    files.write_json(kept, files.read_json(plan.stage(plan.order[0]).path.parent / SAVED))
    return kept


def index() -> str:
    """The tables of all recipes: the memory of their stages, and their published numbers with what was measured here."""
    recipes = sorted({name.rpartition("/")[0] for name in options("recipes")})
    plans = {recipe: Pipeline(recipe, []) for recipe in recipes}
    names = dict.fromkeys(name for plan in plans.values() for name in plan.order)
    columns = sorted(names, key=lambda name: max(p.order.index(name) for p in plans.values() if name in p.order))
    sizes, lacking = [["recipe", "base model", *columns]], {}
    rows = [["recipe/stage", "metric", "published", "band", "here", "verdict"]]
    for recipe, plan in plans.items():
        planned = [f"{_gigabytes(f'{recipe}/{name}'):.1f}" if name in plan.order else "" for name in columns]
        sizes.append([f"[{recipe}]", _base(plan.stage(plan.order[-1])), *planned])
        for name in plan.order:
            for metric, expected in plan.stage(name).expect.items():
                cells = f"{expected.published:g}", _held_against(expected, f"{recipe}/{name}", lacking)
                rows.append([f"{recipe}/{name}", metric, *cells, *_measured_here(recipe, name, metric)])
    links = "\n".join(f"[{recipe}]: {recipe}/" for recipe in plans)
    legend = "\n".join(f"- {letter}: {what}" for what, letter in lacking.items())
    return f"{grid(sizes)}\n\n{links}\n\n{grid(rows)}\n\n{legend}"


def _base(stage: Stage) -> str:
    """The name of the base without who published it."""
    path = str(stage.model.path)
    if stage.model.init or path.startswith(stage.run.root):
        return "from scratch"
    known = (name for name in options("model") if sources.is_local(path) and _weights(name) == path)
    return next(known, path.rpartition("/")[2])


@functools.cache
def _weights(option: str) -> str | None:
    """The path that an option of conf/model names."""
    return OmegaConf.select(OmegaConf.load(REPO / f"conf/model/{option}.yaml"), "path")


@functools.cache
def _gigabytes(stage: str) -> float:
    """What src/plan.py says of a stage as its recipe has it."""
    from rlhf.preflight.plan import resolve

    return resolve([f"recipes={stage}"]).gigabytes


def _held_against(expected: Expected, run: str, lacking: dict[str, str]) -> str:
    """The band, and a letter for the command that measures it; or a letter for what it needs. `lacking` gets each new one."""

    def letter(what: str) -> str:
        return lacking.setdefault(what, chr(ord("A") + len(lacking)))

    if expected.needs is not None:
        return f"needs {letter(expected.needs)}"
    by = "" if expected.benchmark is None else f" {letter(f'`{results.command(run, expected.benchmark)}`')}"
    return f"{expected.low:g}..{expected.high:g}{by}"


def _measured_here(recipe: str, name: str, metric: str) -> tuple[str, str]:
    """The value and the verdict that a commit keeps beside the recipe; empty where it was not measured."""
    kept = REPO / "recipes" / recipe / SAVED
    rows = json.loads(kept.read_text())["rows"] if kept.is_file() else []
    found = [r for r in rows if (r["stage"], r["metric"]) == (name, metric) and r["measured"] is not None]
    return (f"{found[0]['measured']:.4g}", found[0]["verdict"]) if found else ("", "")


def into(readme: Path) -> bool:
    """Replace what stands between the markers by `index()`; whether anything changed."""
    return between_markers(readme, "recipes", index())


def measured(folder: Path, metric: str) -> float | None:
    """The value that a finished stage left: of its results, its last log line that has it, or the recipe's report."""
    files.verify(folder, files.METRICS_FILE, files.RESULTS_FILE)
    lines, report = files.read_lines(folder / files.METRICS_FILE), folder.parent / "report.json"
    found = [files.read_json(folder / files.RESULTS_FILE), *reversed(lines)]
    found += [files.read_json(report).get(folder.name, {})] if report.is_file() else []
    return next((float(entry[metric]) for entry in found if isinstance(entry.get(metric), int | float)), None)


def verdict(expected: Expected, value: float | None) -> str:
    """`reproduced`, `outside` (a number that is not a number is outside), or why it was not checked."""
    if expected.needs is not None:
        return f"not checked: needs {expected.needs}"
    if value is None:
        return "not run"
    assert expected.low is not None and expected.high is not None
    return "reproduced" if expected.low <= value <= expected.high else "outside"
