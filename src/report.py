"""Compare the finished stages of a recipe on prompts nobody trained on.

  python src/report.py recipe=support [run.root=runs] [page=README.md]

Writes report.md, report.json and win_rates.png into runs/<recipe>/ and prints the table; with page= also between that file's
markers, with the command, machine and commit beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf import door


@dataclass
class Arguments:
    recipe: str
    run_root: str = "runs"
    page: str | None = None


def main(own: Arguments) -> None:
    from rlhf.reports.recipe import into_readme, report

    folder = Path(own.run_root) / own.recipe
    table = report(folder)
    print(f"{table}\n\nreport   {folder}/report.md, report.json")
    if own.page is not None:
        into_readme(Path(own.page), folder, table)


if __name__ == "__main__":
    door.enter(main, Arguments)
