"""Run all stages of a recipe, each in a process of its own.

  python src/pipeline.py recipe=support [stages=[reward,ppo]] [key=value] [<stage>.key=value]

Stages that are finished and unchanged are skipped; those whose settings, data or predecessor changed run again. Every other override
goes to each stage that knows it (`seed=2`), or to one stage (`dpo.method.args.beta=0.05`). With launcher=slurm each is a job of a cluster:
docs/cluster.md.
"""

import sys
from dataclasses import dataclass, field

from rlhf import door


@dataclass
class Arguments:
    recipe: str
    stages: list[str] | None = None
    overrides: list[str] = field(default_factory=list)


def main(own: Arguments) -> None:
    from rlhf.runs.pipeline import Pipeline, run

    sys.exit(run(Pipeline(own.recipe, own.overrides, own.stages)))


if __name__ == "__main__":
    door.enter(main, Arguments)
