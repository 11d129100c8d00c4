"""Compare the finished stages of a recipe on prompts nobody trained on.

  python src/report.py recipe=support [root=runs] [readme=README.md]

Writes report.md, report.json and win_rates.png into runs/<recipe>/ and prints the table; with readme= also between that file's
markers, with the command, machine and commit beside it.
"""

from pathlib import Path

from rlhf import door
from rlhf.errors import ConfigError


def main() -> None:
    own, rest = door.own_arguments(__doc__ or "", ("recipe", "root", "readme"))
    if rest or "recipe" not in own:
        raise ConfigError(
            f"{' '.join(rest) or 'recipe'}: {'unknown' if rest else 'missing'}\n  python src/report.py recipe=support"
        )
    from rlhf.reports.recipe import into_readme, report

    folder = Path(own.get("root", "runs")) / own["recipe"]
    table = report(folder)
    print(f"{table}\n\nreport   {folder}/report.md, report.json")
    if "readme" in own:
        into_readme(Path(own["readme"]), folder, table)


if __name__ == "__main__":
    door.enter(main)
