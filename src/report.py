"""Compare the finished stages of a recipe on prompts nobody trained on.

  python src/report.py recipe=support [root=runs]

Writes report.md, report.json and win_rates.png into runs/<recipe>/ and prints the table.
"""

from pathlib import Path

from rlhf import door
from rlhf.errors import ConfigError


def main() -> None:
    own, rest = door.own_arguments(__doc__ or "", ("recipe", "root"))
    if rest or "recipe" not in own:
        raise ConfigError(
            f"{' '.join(rest) or 'recipe'}: {'unknown' if rest else 'missing'}\n  python src/report.py recipe=support"
        )
    from rlhf.report import report

    print(report(Path(own.get("root", "runs")) / own["recipe"]))


if __name__ == "__main__":
    door.enter(main)
