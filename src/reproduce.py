"""Run what is missing of a recipe and hold its numbers against the published ones.

  python src/reproduce.py recipe=support [check=true] [save=true] [key=value] [<stage>.key=value]
  python src/reproduce.py page=recipes/README.md

check=true only reads the finished runs. The verdict is written to runs/<recipe>/reproduction.json, and with save=true also beside the
recipe. Exit code 0: all that was measured is inside its band; 4: something is outside, or nothing was measured. Metrics that need a
judge or a benchmark from elsewhere are listed as not checked. page= writes the table of all recipes between that file's markers.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rlhf import door


@dataclass
class Arguments:
    recipe: str | None = None
    check: bool = False
    save: bool = False
    page: str | None = None
    overrides: list[str] = field(default_factory=list)


def main(own: Arguments) -> None:
    from rlhf.reports.reproduce import check_stated, compare, into, keep, settle, table
    from rlhf.runs.pipeline import Pipeline, run

    if own.page is not None:
        print(f"{own.page} {'is written' if into(Path(own.page)) else 'is up to date'}")
        return
    if own.recipe is None:
        raise door.missing("recipe", __doc__ or "")
    plan = Pipeline(own.recipe, own.overrides)
    check_stated(plan)
    if not own.check and (code := run(plan)):
        sys.exit(code)
    rows = compare(plan)
    print(f"\n{table(rows)}", flush=True)
    if own.save:
        print(f"kept     {keep(plan)}")
    settle(plan.recipe, rows)


if __name__ == "__main__":
    door.enter(main, Arguments)
