"""Sample replies for people to judge, to prompts nobody trained on.

  python src/collect.py run=support/sft [replies=4] [limit=200] [prompts=my.jsonl] [temperature=1] [seed=1] [run.root=runs]
    [store=my.sqlite]
  python src/collect.py run=support/sft,support/ppo choose=unsure reward=support/reward

run          one finished run or several, which take turns
prompts      rows with a prompt each, in any shape of docs/data.md; without it new customers of `support`, whom no stage reads
replies      different replies to a prompt; what was said already is drawn again, up to four times as often
limit        how many prompts
choose       all, or unsure: of four times as many prompts those on which the reward model sees least between its two best replies, or on
             which several (reward=a/reward,b/reward) disagree most; or spread: of three times as many replies those whose scores lie
             furthest apart, so that fewer are alike

They go to runs/<recipe>/feedback.sqlite, or store=. The same command again adds nothing, and after a kill what was missing; another seed asks
other customers. src/feedback.py says what is there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf import door
from rlhf.errors import Refusal


@dataclass
class Arguments:
    run: list[str]
    prompts: str | None = None
    replies: int = 4
    limit: int = 200
    choose: Literal["all", "unsure", "spread"] = "all"
    reward: list[str] | None = None
    temperature: float = 1.0
    max_new_tokens: int | None = None
    seed: door.Count = door.Count(1)
    store: str | None = None
    run_root: str = "runs"


def check(own: Arguments) -> None:
    """Raise a Refusal of what cannot be asked, before anything is loaded."""
    if own.replies < 2:
        raise Refusal("replies", own.replies, "one alone has no rank", fix="replies=2, or more")
    if not 0 < own.temperature < float("inf"):
        raise Refusal("temperature", own.temperature, "different replies need a number above 0", fix="temperature=1")
    if (own.choose != "all") != bool(own.reward):
        why = "a reward model says what it is unsure of, or how far replies are apart, and is asked for nothing else"
        raise Refusal(
            "choose", own.choose, why, fix=f"choose={own.choose.replace('all', 'unsure')} reward=support/reward"
        )


def main(own: Arguments) -> None:
    check(own)
    from rlhf.process import quiet

    quiet()
    from rlhf.feedback.store import FILE, Store
    from rlhf.people import collect, prompts

    root = Path(own.run_root)
    speakers = collect.Speaker.load(root, own.run)
    judges = collect.Speaker.load(root, own.reward or [], scores=True)
    collect.check_judges(speakers, judges, root)
    stage = speakers[0].stage
    asked = prompts.of_file(Path(own.prompts), stage) if own.prompts else prompts.unseen(stage, root, own.seed)
    limit = own.max_new_tokens or stage.evaluation.max_new_tokens
    settings = collect.Asked(speakers, own.replies, own.temperature, limit, own.seed, judges, own.choose == "spread")
    with Store(own.store or root / stage.run.recipe / FILE) as store:
        told = collect.collect(store, asked, settings, own.limit)
        items = len(store.items())
    print(f"added    {told.items} prompts with {told.replies} replies to {store.path}, which has {items} now")
    notes = {
        "draws said what another had said": told.repeated,
        "prompts left out: fewer than two different replies": told.few,
        f"prompts left out: over dataset.max_prompt_length={stage.dataset.max_prompt_length}": told.long,
    }
    for what, count in notes.items():
        print(f"note     {count} {what}" if count else "", end="\n" if count else "")


if __name__ == "__main__":
    door.enter(main, Arguments)
