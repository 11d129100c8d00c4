"""Run what is missing of a recipe and hold its numbers against the published ones.

  python src/reproduce.py recipe=support [check=true] [save=true] [key=value] [<stage>.key=value]
  python src/reproduce.py index=recipes/README.md

check=true only reads the finished runs. The verdict is written to runs/<recipe>/reproduction.json, and with save=true also beside the
recipe. Exit code 0: all that was measured is inside its band; 4: something is outside, or nothing was measured. Metrics that need a
judge or a benchmark from elsewhere are listed as not checked. index= writes the table of all recipes between that file's markers.
"""

import sys
from pathlib import Path

from rlhf import door
from rlhf.errors import ConfigError

FLAGS = {"true": True, "false": False}


def main() -> None:
    own, overrides = door.own_arguments(__doc__ or "", ("recipe", "check", "save", "index"))
    for flag in ("check", "save"):
        if own.get(flag, "false") not in FLAGS:
            raise ConfigError(f"{flag}={own[flag]} is not true or false")
    if "index" in own:
        from rlhf.reports.reproduce import into

        print(f"{own['index']} {'is written' if into(Path(own['index'])) else 'is up to date'}")
        return
    if "recipe" not in own:
        raise ConfigError("recipe is missing\n  python src/reproduce.py recipe=support")
    from rlhf.reports.reproduce import check_stated, compare, keep, settle, table
    from rlhf.runs.pipeline import Pipeline, run

    plan = Pipeline(own["recipe"], overrides)
    check_stated(plan)
    if not FLAGS[own.get("check", "false")] and (code := run(plan)):
        sys.exit(code)
    rows = compare(plan)
    print(f"\n{table(rows)}", flush=True)
    if FLAGS[own.get("save", "false")]:
        print(f"kept     {keep(plan)}")
    settle(plan.recipe, rows)


if __name__ == "__main__":
    door.enter(main)
