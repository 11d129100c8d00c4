"""Run all stages of a recipe, each in a process of its own.

  python src/pipeline.py recipe=support [stages=[reward,ppo]] [key=value] [<stage>.key=value]

Stages that are finished and unchanged are skipped; those whose settings, data or predecessor changed run again. Every other override
goes to each stage that knows it (`seed=2`), or to one stage (`dpo.method.args.beta=0.05`).
"""

import sys

from rlhf import door
from rlhf.errors import ConfigError


def main() -> None:
    own, overrides = door.own_arguments(__doc__ or "", ("recipe", "stages"))
    if "recipe" not in own:
        raise ConfigError("recipe is missing\n  python src/pipeline.py recipe=support")
    from rlhf.runs.pipeline import Pipeline, run

    only = [name.strip() for name in own["stages"].strip("[]").split(",") if name.strip()] if "stages" in own else None
    sys.exit(run(Pipeline(own["recipe"], overrides, only)))


if __name__ == "__main__":
    door.enter(main)
