"""Prompts, and the one split that each piece of content belongs to.

A content is a (situation, subject, item or setting, wording); a digest of it picks its split, so no two splits hold a
prompt about the same thing in the same words. Greetings, names, closings and typos follow from the content as well: the
prompts of the world are a fixed set, and a seed only chooses among them.
"""

import hashlib
import random
from collections import defaultdict
from functools import lru_cache
from itertools import product, zip_longest

from rlhf.support.customers import CLOSERS, FRAMES, NAMES, OPENERS, SAYS, SETTINGS
from rlhf.support.world import SITUATIONS, WORLD, items_for

# Shares in percent of all contents.
SPLITS = {
    **{"demonstrations": 34, "demonstrations_held_out": 6, "rankings": 20, "rankings_held_out": 6},
    **{"prompts": 28, "evaluation": 6},
}
SHORTEST, LONGEST = 6, 22  # words
SURFACES = 6  # greetings and closings tried on each content
TYPOS = 0.12  # share of prompts with one


def content_key(situation: str, subject: str, thing: str, said: int, frame: int) -> str:
    """The text whose digest decides the split; `said` and `frame` number the wording."""
    return f"{situation}/{subject}/{thing}/{said}/{frame}"


def split_of(key: str) -> str:
    """The one split that a content belongs to: stable across processes, versions of Python and seeds."""
    point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for split, share in SPLITS.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("the shares of the splits do not sum to 100")


@lru_cache
def pool(split: str) -> dict[str, dict[str, tuple[dict[str, str], ...]]]:
    """All facts of a split, by situation and subject; their prompts are distinct."""
    seen: set[str] = set()
    found: dict[str, dict[str, list[dict[str, str]]]] = {s: defaultdict(list) for s in SITUATIONS}
    for situation, (name, subject) in ((s, pair) for s in SITUATIONS for pair in WORLD[s].items()):
        things = SETTINGS if situation == "brief" else items_for(subject)
        wordings = product(range(len(SAYS[situation][name])), range(len(FRAMES[situation])))
        for thing, (said, frame) in product(things, wordings):
            key = content_key(situation, name, thing, said, frame)
            if split_of(key) != split:
                continue
            text = FRAMES[situation][frame].replace("{said}", SAYS[situation][name][said]).replace("{item}", thing)
            rng = random.Random(key)
            for prompt in (_surface(text, thing, rng) for _ in range(SURFACES)):
                if SHORTEST <= len(prompt.split()) <= LONGEST and prompt not in seen:
                    seen.add(prompt)
                    item = "" if situation == "brief" else thing
                    facts = {"situation": situation, "subject": name, "item": item, "answer": subject.answer}
                    found[situation][name].append({**facts, "content": key, "prompt": prompt})
    return {s: {name: tuple(rows) for name, rows in subjects.items()} for s, subjects in found.items()}


def draw(split: str, rows: int, rng: random.Random) -> list[dict[str, str]]:
    """Draw `rows` facts with distinct prompts, balanced over situations and over the subjects of each."""
    chosen: list[dict[str, str]] = []
    for number, situation in enumerate(SITUATIONS):
        share = rows // len(SITUATIONS) + (number < rows % len(SITUATIONS))
        groups = [rng.sample(group, len(group)) for group in pool(split)[situation].values()]
        rng.shuffle(groups)
        facts = [fact for layer in zip_longest(*groups) for fact in layer if fact is not None]
        if share > len(facts):
            raise ValueError(
                f"rows = {rows} asks split {split!r} for {share} prompts of situation {situation!r}, which has "
                f"{len(facts)}; at most {capacity(split)} rows are available"
            )
        chosen += facts[:share]
    rng.shuffle(chosen)
    return [dict(fact) for fact in chosen]


def capacity(split: str) -> int:
    """How many rows `draw` can give: the scarcest situation decides, because situations are balanced."""
    return len(SITUATIONS) * min(sum(map(len, subjects.values())) for subjects in pool(split).values())


def _surface(text: str, thing: str, rng: random.Random) -> str:
    name = rng.choice(NAMES)
    parts = (rng.choice(OPENERS).format(name=name), text, rng.choice(CLOSERS).format(name=name))
    words = " ".join(part for part in parts if part).split()
    # The item itself stays legible: a reply has to name it, and replies have no typos.
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha() and word not in (thing, name)]
    if long and rng.random() < TYPOS:
        i = rng.choice(long)
        cut = rng.randrange(1, len(words[i]) - 2)
        words[i] = words[i][:cut] + words[i][cut + 1] + words[i][cut] + words[i][cut + 2 :]
    return " ".join(words)
