"""Which is better for this data, PPO or DPO? Run the trials of both that are missing, and report.

  python src/compare.py recipe=support [seeds=[1,2,3]] [beta=[0.1,0.3,1]] [kl_coef=[0.03,0.1,0.3]]
    [dpo_learning_rate=[1e-4,5e-4] ppo_learning_rate=[1e-4,5e-4]] [key=value] [<stage>.key=value]

Each arm gets as many trials as it has settings (the recipe's own, a third of it and three times it), with every seed, from the same SFT
weights and the same pairs. Writes report.html, report.md, report.json and their figures into runs/<recipe>/compare/; what has run
is not run again. Learning rates, as many for each arm, are tried first, with the first seed and on the prompts that no verdict is
counted on; the trials have each arm's best. More keys:
  judge=annotator|reward:<model>|openai:<model>   who decides win rates; default: as gold
  gold=annotator|reward:<model>                   what counts as the true score; default: the dataset's annotator, or evaluation.gold
  jobs=2                                          trials at a time; default: as many as fit
  launcher=slurm                                  trials as jobs of a cluster: docs/cluster.md
  name=compare                                    another folder, for another comparison of the same recipe
Exit code 0: all trials are in the report; 1: some failed (the report is of the others, and names them).
"""

import sys
from dataclasses import dataclass, field

from rlhf import door


@dataclass
class Arguments:
    recipe: str
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    beta: list[float] | None = None
    kl_coef: list[float] | None = None
    dpo_learning_rate: list[float] | None = None
    ppo_learning_rate: list[float] | None = None
    judge: str | None = None
    gold: str | None = None
    jobs: int | None = None
    name: str = "compare"
    overrides: list[str] = field(default_factory=list)


def main(own: Arguments) -> None:
    from rlhf.compare.run import run
    from rlhf.compare.trials import Comparison

    settings = {"dpo": own.beta, "ppo": own.kl_coef}
    rates = {"dpo": own.dpo_learning_rate, "ppo": own.ppo_learning_rate}
    comparison = Comparison(own.recipe, own.overrides, own.seeds, settings, own.name, rates)
    sys.exit(1 if run(comparison, own.jobs, own.judge, own.gold) else 0)


if __name__ == "__main__":
    door.enter(main, Arguments)
