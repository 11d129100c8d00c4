"""The verdict on a recipe: what its stages measured, against the published numbers that its stages state."""

import functools
import json
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.config import REPO, Expected, Stage, compose_config, options, to_stage
from rlhf.errors import ConfigError, GuardStop
from rlhf.output.tables import between_markers, grid
from rlhf.runs import record
from rlhf.runs.pipeline import Pipeline, stages_of

SAVED = "reproduction.json"


def check_stated(plan: Pipeline) -> None:
    """Refuse a recipe that has nothing to be compared with, before it trains for hours."""
    if not any(plan.stage(name).expect for name in plan.order):
        raise ConfigError(
            f"recipe={plan.recipe}: no stage has `expect`, so there is nothing to reproduce\n"
            f"  fix: python src/pipeline.py recipe={plan.recipe}"
        )


def compare(plan: Pipeline) -> list[dict[str, Any]]:
    """One row for each expected metric of each stage; writes reproduction.json into the recipe's folder of runs."""
    rows, runs = [], {}
    for name in plan.order:
        stage = plan.stage(name)
        state = record.state(stage)
        if state == "finished":
            runs[name] = {
                key: record.read_run(stage.path).get(key) for key in ("id", "seed", "seconds", "machine", "git")
            }
        for metric, expected in stage.expect.items():
            value = None
            if state == "finished" and expected.needs is None:
                value = measured(stage.path, metric)
                if value is None:
                    raise ConfigError(
                        f"{stage.path} left no {metric}, which expect.{metric} names\n  fix: run.overwrite=true"
                    )
            word = verdict(expected, value)
            if word == "not run" and state == "stale":
                word = f"not run with these settings ({record.changes(stage)} changed)"
            rows.append({"stage": name, "metric": metric, "measured": value, "verdict": word, **vars(expected)})
    folder = plan.stage(plan.order[0]).path.parent
    if folder.is_dir():
        content = {"recipe": plan.recipe, "overrides": plan.overrides, "rows": rows, "runs": runs}
        files.write_json(folder / SAVED, content | {"reproduced": _all_inside(rows)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Fixed-width columns that read as Markdown too."""
    cells = [["stage", "metric", "published", "measured", "band", "verdict"]]
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.4g}"
        cells.append([row["stage"], row["metric"], f"{row['published']:.4g}", measured, _band(row), row["verdict"]])
    return grid(cells)


def settle(recipe: str, rows: list[dict[str, Any]]) -> None:
    """Return when all that was measured is inside its band; raise a GuardStop otherwise."""
    outside = [f"{row['stage']} {row['metric']}" for row in rows if row["verdict"] == "outside"]
    if outside:
        raise GuardStop(f"{recipe} is not reproduced: {', '.join(outside)} outside the band")
    if not any(row["verdict"] == "reproduced" for row in rows):
        waiting = [row["stage"] for row in rows if row["verdict"].startswith("not run")]
        raise GuardStop(
            f"{recipe}: nothing was measured"
            + (
                f"\n  fix: without check=true, to run {', '.join(dict.fromkeys(waiting))}"
                if waiting
                else "; see `not checked`"
            )
        )


def _all_inside(rows: list[dict[str, Any]]) -> bool:
    words = [row["verdict"] for row in rows]
    return "reproduced" in words and "outside" not in words


def _band(row: dict[str, Any]) -> str:
    return "-" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g} ({row['band']})"


def keep(plan: Pipeline) -> Path:
    """Copy the verdict beside the recipe, where the index finds it and a commit keeps it."""
    kept = REPO / "recipes" / plan.recipe / SAVED
    files.write_json(kept, json.loads((plan.stage(plan.order[0]).path.parent / SAVED).read_text()))
    return kept


def index() -> str:
    """The table of all recipes: stages, cost as published, published numbers, and what was measured here."""
    lines = [
        "| recipe | stages | base | machine, hours as published | memory of a device, planned | published | measured here |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in sorted({option.rpartition("/")[0] for option in options("recipes")}):
        stages = {name: to_stage(compose_config([f"recipes={recipe}/{name}"])) for name in stages_of(recipe)}
        names = sorted(
            stages, key=lambda n: (("base", "sft", "reward", "dpo", "ppo").index(n) if n in stages else 9, n)
        )
        published = [_stated(name, metric, e) for name in names for metric, e in stages[name].expect.items()]
        cells = [
            f"[{recipe}]({recipe}/)",
            ", ".join(names),
            _base(stages[names[-1]]),
            _cost({name: stages[name] for name in names}),
            _memory(recipe, tuple(names)),
            "<br>".join(published) or "no number",
            _measured_here(recipe),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _base(stage: Stage) -> str:
    return (
        "from scratch"
        if stage.model.init or str(stage.model.path).startswith(stage.run.root)
        else str(stage.model.path)
    )


def _cost(stages: dict[str, Stage]) -> str:
    machines: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if stage.source.hardware:
            hours = f" {stage.source.hours:g} h" if stage.source.hours else ""
            machines.setdefault(stage.source.hardware, []).append(name + hours)
    return "<br>".join(f"{machine}: {', '.join(names)}" for machine, names in machines.items()) or "-"


@functools.cache
def _memory(recipe: str, names: tuple[str, ...]) -> str:
    """What src/plan.py says of each stage as the recipe has it."""
    from rlhf.preflight.plan import resolve

    return ", ".join(f"{name} {resolve([f'recipes={recipe}/{name}']).gigabytes:.1f}" for name in names) + " GB"


def _stated(name: str, metric: str, expected: Any) -> str:
    band = f" [{expected.low:g}, {expected.high:g}]" if expected.low is not None else f" (needs {expected.needs})"
    return f"{name} {metric} {expected.published:g}{band}"


def _measured_here(recipe: str) -> str:
    kept = REPO / "recipes" / recipe / SAVED
    if not kept.is_file():
        return "not run on the real weights"
    rows = json.loads(kept.read_text())["rows"]
    found = [
        f"{r['stage']} {r['metric']} {r['measured']:.4g}, {r['verdict']}" for r in rows if r["measured"] is not None
    ]
    return "<br>".join(found) or "nothing measured"


def into(readme: Path) -> bool:
    """Replace what stands between the markers by the index; whether anything changed."""
    return between_markers(readme, "recipes", index())


def measured(folder: Path, metric: str) -> float | None:
    """The value that a finished stage left: of its results, its last log line that has it, or the recipe's report."""
    found = [
        json.loads((folder / files.RESULTS_FILE).read_text()),
        *reversed(files.read_lines(folder / files.METRICS_FILE)),
    ]
    report = folder.parent / "report.json"
    found += [json.loads(report.read_text()).get(folder.name, {})] if report.is_file() else []
    return next((float(entry[metric]) for entry in found if isinstance(entry.get(metric), int | float)), None)


def verdict(expected: Expected, value: float | None) -> str:
    """`reproduced`, `outside` (a number that is not a number is outside), or why it was not checked."""
    if expected.needs is not None:
        return f"not checked: needs {expected.needs}"
    if value is None:
        return "not run"
    assert expected.low is not None and expected.high is not None
    return "reproduced" if expected.low <= value <= expected.high else "outside"
