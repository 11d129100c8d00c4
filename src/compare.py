"""Which is better for this data, PPO or DPO? Run the trials of both that are missing, and report.

  python src/compare.py recipe=support [seeds=[1,2,3]] [beta=[0.1,0.3,1]] [kl_coef=[0.03,0.1,0.3]] [key=value] [<stage>.key=value]

Each arm gets as many trials as it has settings (the recipe's own, a third of it and three times it), with every seed, from the same SFT
weights and the same pairs. Writes report.html, report.md, report.json and their figures into runs/<recipe>/compare/; what has run
is not run again. More keys:
  judge=annotator|reward:<model>|openai:<model>   who decides win rates; default: as gold
  gold=annotator|reward:<model>                   what counts as the true score; default: the dataset's annotator
  jobs=2                                          trials at a time; default: as many as fit
  name=compare                                    another folder, for another comparison of the same recipe
Exit code 0: all trials are in the report; 1: some failed (the report is of the others, and names them).
"""

import sys
from collections.abc import Sequence
from typing import Any

from rlhf import door
from rlhf.errors import ConfigError

KEYS = ("recipe", "seeds", "beta", "kl_coef", "judge", "gold", "jobs", "name")


def main() -> None:
    own, overrides = door.own_arguments(__doc__ or "", KEYS)
    if "recipe" not in own:
        raise ConfigError("recipe is missing\n  python src/compare.py recipe=support")
    from rlhf.compare.run import run

    settings: dict[str, Sequence[float]] = {
        arm: _numbers(own, key, float) for arm, key in (("dpo", "beta"), ("ppo", "kl_coef")) if key in own
    }
    failed = run(
        own["recipe"],
        overrides,
        seeds=_numbers(own, "seeds", int) if "seeds" in own else (1, 2, 3),
        settings=settings,
        name=own.get("name", "compare"),
        jobs=_numbers(own, "jobs", int)[0] if "jobs" in own else None,
        judge=own.get("judge"),
        gold=own.get("gold"),
    )
    sys.exit(1 if failed else 0)


def _numbers(own: dict[str, str], key: str, kind: Any) -> list[Any]:
    try:
        found = [kind(text) for text in own[key].strip("[]").split(",")]
    except ValueError as error:
        raise ConfigError(f"{key}={own[key]} is not a list of numbers, e.g. {key}=[1,2,3]") from error
    if not found or (kind is int and min(found) < 1):
        raise ConfigError(f"{key}={own[key]}: whole numbers from 1")
    return found


if __name__ == "__main__":
    door.enter(main)
