"""What people said of a recipe's replies: how many, how far they agree, and what the order of the replies had to do with it.

  python src/feedback.py recipe=support [judge=simulated] [labels=400] [shared=0.2] [seed=1] [run.root=runs] [store=my.sqlite]
  python src/feedback.py recipe=support write=rankings.jsonl [format=rankings] [read=rankings.jsonl]

judge=simulated   first lets three simulated people judge what is there and not judged (prompts of `support`, whose truth is known);
                  they turn around 5, 10 and 15% of the pairs
labels            at most so many judgements; without it all
shared            the share of prompts that all three judge, which agreement is measured on
read, write       takes in the judgements of a file, or writes them into one, in the format=
                  rankings (JSON lines of prompt, replies, ranks, annotator), pairs (TRL's prompt, chosen, rejected), argilla, label-studio

A judgement of the store, runs/<recipe>/feedback.sqlite or store=, is one person's ranking of the replies to a prompt, a skip, or `all bad`.
Krippendorff's alpha is 1 where people agree and 0 where chance would do as well. Learn from it: dataset=feedback.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf import door
from rlhf.errors import Refusal


@dataclass
class Arguments:
    recipe: str
    judge: Literal["simulated"] | None = None
    labels: int | None = None
    shared: float = 0.2
    seed: door.Count = door.Count(1)
    read: str | None = None
    write: str | None = None
    format: Literal["rankings", "pairs", "argilla", "label-studio"] = "rankings"
    store: str | None = None
    run_root: str = "runs"


def check(own: Arguments) -> None:
    """Raise a Refusal of what cannot be asked."""
    if not 0 <= own.shared <= 1:
        raise Refusal("shared", own.shared, "must be a share from 0 to 1")
    if own.judge is None and own.labels is not None:
        raise Refusal("labels", own.labels, "nobody is asked to judge", fix="judge=simulated")


def main(own: Arguments) -> None:
    check(own)
    from rlhf.feedback.store import FILE, Store
    from rlhf.people import agreement, exchange, simulated

    path = Path(own.store or Path(own.run_root) / own.recipe / FILE)
    if own.read:
        words = exchange.read(Path(own.read), own.format)
        with Store(path) as store:
            count, left = exchange.taken_in(store, words, Path(own.read).name)
        print(f"read     {count} judgements of {own.read}{_left_out(left)}")
    with Store(path, write=False) as store:
        items = store.items()
    if own.judge:
        with Store(path) as store:
            print(f"judged   {simulated.judge(store, own.labels, own.shared, own.seed)} times by simulated people")
    with Store(path, write=False) as store:
        print(f"store    {path}: {len(items)} prompts, {sum(len(item.replies) for item in items)} replies")
        print("\n".join(agreement.lines(store.judgements())))
        if own.write:
            count, left = exchange.written(store, Path(own.write), own.format)
            print(f"written  {count} rows to {own.write}{_left_out(left)}")


def _left_out(left: dict[str, int]) -> str:
    return "".join(f", {count} left out: {why}" for why, count in left.items() if count)


if __name__ == "__main__":
    door.enter(main, Arguments)
