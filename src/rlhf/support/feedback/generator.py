"""Single thumbs: one reply to a prompt that nobody asks twice, and whether the customer liked it."""

import random

from rlhf.support.generator import evaluation, rankings

__all__ = ["evaluation", "thumbs"]

CURT = 1.75  # the worth of a right answer and nothing else, and the median of the replies that are shown


def thumbs(rows: int, seed: int, noise: float = 0.3, held_out: bool = False) -> list[dict]:
    """Rows of prompt, completion, label, true score and facts.

    The label is true where the reply is truly worth more than a curt one, and turned around with probability `noise`. Raise ValueError
    where the split has fewer prompts than `rows`, or where `noise` is not in 0..0.5.
    """
    if not 0.0 <= noise <= 0.5:
        raise ValueError(f"noise = {noise} is not a rate of wrong thumbs; it is 0 (always true) to 0.5 (a coin)")
    rng = random.Random(f"thumbs/{seed}/{held_out}")
    found = []
    for row in rankings(rows, seed, k=2, noise=0.0, held_out=held_out):
        worth = row["true_scores"][0]  # the two are in random order
        label = (worth > CURT) != (rng.random() < noise)
        found.append({"prompt": row["prompt"], "completion": row["replies"][0], "label": label, "true_score": worth})
        found[-1]["facts"] = row["facts"]
    return found
