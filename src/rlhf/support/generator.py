"""The dataset: seeded rows for each stage, from splits that share no content."""

import random

from rlhf.support.annotator import score
from rlhf.support.prompts import draw, pool
from rlhf.support.ranking import gaps, noisy_ranks, temperature
from rlhf.support.replies import DEFECTS, GOOD, STYLES, ideal_reply, reply
from rlhf.support.world import ITEMS, SITUATIONS, WORLD, items_for

__all__ = ["demonstrations", "evaluation", "ideal_reply", "prompts", "rankings", "reply", "text"]

# Demonstrations are right but curt, so that SFT learns the task and leaves something to prefer.
DEMONSTRATED = {"ideal": 0.10, "partial": 0.20, "curt": 0.65, "defect": 0.05}
# The base model meets every style, so that it knows the language and not the preference. Half of it defects, and a model of two
# million parameters does not learn in two minutes which answer belongs to which question. Many replies name
# the customer's item, because copying a word from the prompt has to be learned too.
PRETRAINED = {"ideal": 0.30, "partial": 0.30, "curt": 0.30, "defect": 0.10}
# Web text does not know when to stop: most pretraining dialogues run on after the reply, which SFT unlearns.
RUNS_ON = 0.6
# How often a style is among the replies to rank, relative to an ordinary defect: people rank what models write, which is mostly
# right, often wrong, and less often one of the slips that take a count or a comparison of two places in the text to see.
RANKED = {
    **dict.fromkeys(GOOD, 4.0),
    "wrong_answer": 2.0,
    **dict.fromkeys(("wrong_item", "hedged", "over_apology"), 0.5),
}


def demonstrations(rows: int, seed: int, held_out: bool = False) -> list[dict]:
    """Rows of prompt, completion, facts and style; raise ValueError where the split has fewer prompts than `rows`."""
    rng = random.Random(f"demonstrations/{seed}/{held_out}")
    return [
        {"prompt": facts["prompt"], "completion": reply(facts, style, rng), "facts": facts, "style": style}
        for facts in draw("demonstrations_held_out" if held_out else "demonstrations", rows, rng)
        for style in [_style(facts, DEMONSTRATED, rng)]
    ]


def rankings(rows: int, seed: int, k: int = 4, noise: float = 0.1, held_out: bool = False) -> list[dict]:
    """Rows of prompt, k replies in random order, their noisy ranks (0 is best), true scores and facts.

    `noise` is the expected share of strictly ordered pairs that the ranks turn around. Raise ValueError where the split
    has fewer prompts than `rows`, where a situation has fewer than `k` styles, or where `noise` is not in 0..0.5.
    """
    most = min(map(len, STYLES.values()))
    if not 2 <= k <= most:
        raise ValueError(f"k = {k} replies cannot be ranked; 2 to {most} different styles are available")
    rng = random.Random(f"rankings/{seed}/{held_out}")
    found = []
    for facts in draw("rankings_held_out" if held_out else "rankings", rows, rng):
        replies = _different(facts, k, rng)
        scores = [score(facts, text) for text in replies]
        found.append({"prompt": facts["prompt"], "replies": replies, "true_scores": scores, "facts": facts})
    t = temperature([gap for row in found for gap in gaps(row["true_scores"])], noise)
    return [{**row, "ranks": noisy_ranks(row["true_scores"], t, rng)} for row in found]


def prompts(rows: int, seed: int) -> list[dict]:
    """Rows of prompt and facts for PPO; raise ValueError where the split has fewer than `rows`."""
    return [{"prompt": f["prompt"], "facts": f} for f in draw("prompts", rows, random.Random(f"prompts/{seed}"))]


def evaluation(rows: int, seed: int) -> list[dict]:
    """Held-out rows of prompt and facts, balanced by situation; raise ValueError where there are fewer than `rows`."""
    return [{"prompt": f["prompt"], "facts": f} for f in draw("evaluation", rows, random.Random(f"evaluation/{seed}"))]


def text(rows: int, seed: int, held_out: bool = False) -> list[dict]:
    """Pretraining documents: dialogues with prompts of the demonstrations in all styles, most run on into a note on the shop.

    Held-out documents have prompts of held-out demonstrations.
    """
    rng = random.Random(f"text/{seed}/{held_out}")
    split = "demonstrations_held_out" if held_out else "demonstrations"
    return [{"text": _dialogue(rng, split)} for _ in range(rows)]


def _style(facts: dict[str, str], mix: dict[str, float], rng: random.Random) -> str:
    style = rng.choices(list(mix), list(mix.values()))[0]
    return rng.choice(DEFECTS[facts["situation"]]) if style == "defect" else style


def _different(facts: dict[str, str], k: int, rng: random.Random) -> list[str]:
    """k replies of k styles, no two with the same text, in random order."""
    styles = sorted(STYLES[facts["situation"]], key=lambda s: rng.random() ** (1 / RANKED.get(s, 1.0)), reverse=True)
    replies: list[str] = []
    for style in styles[:k]:
        written = reply(facts, style, rng)
        while written in replies:
            written = reply(facts, style, rng)
        replies.append(written)
    rng.shuffle(replies)
    return replies


def _dialogue(rng: random.Random, split: str) -> str:
    facts = rng.choice(rng.choice(list(pool(split)[rng.choice(SITUATIONS)].values())))
    written = reply(facts, _style(facts, PRETRAINED, rng), rng)
    rest = f" also, {_note(facts, rng)}" if rng.random() < RUNS_ON else ""
    return f"<|user|>{facts['prompt']}<|end|><|assistant|>{written}{rest}<|end|>"


def _note(facts: dict[str, str], rng: random.Random) -> str:
    """A fact of the shop that nobody asked for, about the customer's item: one more chance to learn to name it again."""
    item = facts["item"] or rng.choice(list(ITEMS))
    situation = rng.choice(SITUATIONS[:4])
    subject = rng.choice([subject for subject in WORLD[situation].values() if item in items_for(subject)])
    templates = {
        "kind": (
            f"if {subject.about}, {rng.choice(subject.core or ('',))}",
            f"{subject.about}? you need {subject.answer}.",
        ),
        "honest": (f"{subject.answer} knows {subject.about}.", f"ask {subject.answer} {subject.about}."),
        "clarifying": (
            f"many people like the {item}.",
            f"a good {item} lasts for years.",
            f"we have a new {item} today.",
        ),
        "safe": (f"{subject.about} is not safe. {subject.answer} instead.", f"to stay safe, {subject.answer}."),
    }
    return rng.choice(templates[situation]).replace("{item}", item)
