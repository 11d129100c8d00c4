"""Rounds of feedback: sample, judge, train the reward model again, PPO again; against as many labels of the SFT model at once.

  python src/rounds.py recipe=support [rounds=3] [labels=400] [seeds=[1,2,3]] [replies=4] [key=value] [<stage>.key=value]

Three arms, all with the same PPO: `rounds` asks people about the policy of the round before and trains the reward model on all they
have said; `at_once` asks as many about the SFT model; `frozen` goes on with the first reward model. Writes report.md, report.json and
gold.png into runs/<recipe>/rounds/; what has run is not run again, and after a kill the same command goes on. More keys:
  judge=people        not the simulated people: stops with exit code 75 and says what to do, until enough judgements are there
  arms=[rounds,frozen]  not all three
  jobs=2              chains of stages at a time; default: as many as fit
  launcher=slurm      steps as jobs of a cluster: docs/cluster.md
  name=rounds         another folder, for rounds with other settings
"""

from dataclasses import dataclass, field
from typing import Literal

from rlhf import door


@dataclass
class Arguments:
    recipe: str
    rounds: int = 3
    labels: int = 400
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    replies: int = 4
    judge: Literal["simulated", "people"] = "simulated"
    arms: list[str] = field(default_factory=lambda: ["rounds", "at_once", "frozen"])
    jobs: int | None = None
    name: str = "rounds"
    overrides: list[str] = field(default_factory=list)


def main(own: Arguments) -> None:
    from rlhf.rounds import report
    from rlhf.rounds.plan import Rounds
    from rlhf.rounds.run import run

    rounds = Rounds(own.recipe, own.overrides, own.rounds, own.labels, own.seeds, own.replies, own.name, own.arms)
    run(rounds, own.jobs, own.judge)
    print(report.write(rounds))


if __name__ == "__main__":
    door.enter(main, Arguments)
