"""The assistant's side: sentences of a small language, and replies in named styles, from ideal to rude."""

import random
import re
from collections.abc import Iterator
from functools import lru_cache

from rlhf.support.world import ITEMS, SITUATIONS, WORLD, items_for, subject_of

# `warm` is kindness alone; `named` also says what the request is about; `offer` leaves the door open.
WARM = {
    "kind": ("we are sorry about this.", "sorry for the trouble.", "i am sorry to hear that."),
    "honest": ("that is a good question.", "thank you for asking.", "good question."),
    "clarifying": ("we are happy to help.", "of course, we can help.", "thank you for writing."),
    "safe": ("please stay safe.", "we care about your safety.", "your safety comes first."),
    "brief": ("thank you for writing.", "it is nice to hear from you.", "we are glad you wrote."),
}
NAMED = {
    "kind": ("i am sorry that {about}.", "we are very sorry that {about}.", "sorry to hear that {about}."),
    "honest": ("i do not know {about}.", "we do not know {about}.", "i am not sure {about}."),
    "clarifying": (
        *("we are happy to help with {about}.", "of course, we can help with {about}."),
        "thank you for asking about {about}.",
    ),
    "safe": ("we cannot help with {about}.", "{about} is not safe.", "{about} is very dangerous."),
}
OFFER = {
    **dict.fromkeys(
        ("kind", "honest", "safe"),
        (
            *("please write back if you need more help.", "let us know if you need anything else."),
            *("we are here if you need us.", "is there anything else we can do?"),
        ),
    ),
    "clarifying": ("then we can find the best answer.", "then we will take care of it.", "then we can tell you more."),
    "brief": ("have a good day.", "take care.", "all the best.", "have a nice day."),
}
# Where the answer has two halves: the admission or the refusal first, then where to turn.
FIRST = {
    "honest": ("i do not know.", "we do not know.", "i am not sure."),
    "safe": ("we cannot help with that.", "that is not safe.", "please do not do that."),
}
SECOND = {
    "honest": ("please ask {answer}.", "{answer} would know.", "{answer} can tell you."),
    "safe": ("please {answer}.", "please {answer} instead.", "it is safer to {answer}."),
}
SURE = {"honest": ("yes, {bluff}", "i am sure. {bluff}", "{bluff}"), "safe": ("sure, {bluff}", "yes, {bluff}")}
RUDE = ("that is your own fault.", "stop asking us.", "who cares?", "that is a stupid question.", "not our problem.")
REFUSE = ("we cannot help with that.", "we cannot do that.", "we will not talk about that.")
SORRY = ("we are so sorry.", "we are very very sorry.", "sorry again.", "we feel so sorry.", "sorry for everything.")
FILLER = (
    *("our shop has a long history.", "many people visit us every day.", "our team had lunch at noon."),
    *("the new store is big and green.", "we also have a letter for our friends.", "our driver likes to sing."),
)
EMPTY = ("ok.", "noted.", "hm.", "yes.", "fine.")

GOOD = ("ideal", "partial", "curt")
_DEFECTS = ("wrong_answer", "rude", "rambling", "over_apology", "repeated", "off_topic", "empty")
DEFECTS = {
    "kind": (*_DEFECTS, "hedged", "wrong_item", "refuse"),
    "honest": (*_DEFECTS, "hedged", "wrong_item", "refuse", "made_up"),
    "clarifying": (*_DEFECTS, "two_questions", "no_question", "wrong_item", "refuse"),
    "safe": (*_DEFECTS, "hedged", "comply"),
    "brief": (*_DEFECTS, "refuse"),
}
STYLES = {situation: GOOD + DEFECTS[situation] for situation in SITUATIONS}


def reply(facts: dict[str, str], style: str, rng: random.Random) -> str:
    """Write a reply in `style`; raise ValueError for a style that the situation of `facts` does not have."""
    situation = facts["situation"]
    if style not in STYLES[situation]:
        raise ValueError(f"style = {style!r} does not exist for {situation!r} (has: {', '.join(STYLES[situation])})")
    return " ".join(_sentences(facts, style, rng))


def ideal_reply(facts: dict[str, str]) -> str:
    """The ideal reply to `facts["prompt"]`: always the same wording for the same prompt."""
    return reply(facts, "ideal", random.Random(facts["prompt"]))


def _sentences(facts: dict[str, str], style: str, rng: random.Random) -> list[str]:
    situation = facts["situation"]
    other = {**facts, "subject": rng.choice([name for name in WORLD[situation] if name != facts["subject"]])}
    warm = rng.choice(WARM[situation])
    match style:
        case "ideal":
            return _full(facts, rng)
        case "partial":
            return _partial(facts, rng)
        case "curt":
            return _core(facts, rng)
        case "wrong_answer":
            return rng.choice(([], [warm], _lead(facts, rng))) + _core(other, rng)[-1:]
        case "hedged":
            return _core(facts, rng) + _core(other, rng)[-1:]
        case "wrong_item":
            items = [item for item in items_for(subject_of(facts)) if item != facts["item"]]
            return _full({**facts, "item": rng.choice(items)}, rng)
        case "rude":
            return [*_core(facts, rng)[: rng.randint(0, 2)], rng.choice(RUDE)]
        case "made_up" | "comply":
            text = rng.choice(SURE[situation]).format(bluff=_fill(subject_of(facts).bluff, facts))
            return rng.choice(([text], [warm, text], [text, rng.choice(OFFER[situation])]))
        case "two_questions":
            return rng.choice(([], [warm])) + _core(facts, rng) + _core(other, rng)
        case "no_question":
            return rng.choice(([warm, rng.choice(OFFER[situation])], [rng.choice(OFFER[situation])]))
        case "refuse":
            return rng.choice(([], [warm])) + [rng.choice(REFUSE)]
        case "rambling":
            return _full(facts, rng) + rng.sample(FILLER, 3)
        case "over_apology":
            return rng.sample(SORRY, 3) + _core(facts, rng)
        case "repeated":
            return rng.choice((_core(facts, rng), _partial(facts, rng))) * rng.randint(2, 3)
        case "off_topic":
            return rng.sample(FILLER, rng.randint(1, 2))
        case _:
            return [rng.choice(EMPTY)]


def _core(facts: dict[str, str], rng: random.Random, named: bool = False) -> list[str]:
    """The right answer and nothing else; `named` lets its first half say what the request is about."""
    situation, subject = facts["situation"], subject_of(facts)
    if situation not in FIRST:
        return [_fill(rng.choice(subject.core), facts)]
    first = rng.choice((NAMED if named else FIRST)[situation])
    return [_fill(first, facts), _fill(rng.choice(SECOND[situation]), facts)]


def _lead(facts: dict[str, str], rng: random.Random) -> list[str]:
    """The sentence that is kind and names the matter, where a situation opens with one."""
    situation = facts["situation"]
    return [_fill(rng.choice(NAMED[situation]), facts)] if situation in ("kind", "clarifying") else []


def _partial(facts: dict[str, str], rng: random.Random) -> list[str]:
    situation = facts["situation"]
    warm, offer = [rng.choice(WARM[situation])], [rng.choice(OFFER[situation])]
    choices = [warm + _core(facts, rng), _core(facts, rng) + offer]
    if situation == "brief" or situation == "safe":
        choices[0] = _core(facts, rng) + warm
    if situation in FIRST:
        choices.append(_core(facts, rng, named=True))
    elif situation in NAMED:
        choices.append(_lead(facts, rng) + _core(facts, rng))
    return rng.choice(choices)


def _full(facts: dict[str, str], rng: random.Random) -> list[str]:
    situation = facts["situation"]
    warm, offer = [rng.choice(WARM[situation])], [rng.choice(OFFER[situation])]
    match situation:
        case "kind" | "clarifying":
            return _lead(facts, rng) + _core(facts, rng) + offer
        case "honest":
            return warm + _core(facts, rng, named=True) + offer
        case "safe":
            return _core(facts, rng, named=True) + warm + offer
        case _:
            return _core(facts, rng) + warm + offer


def _fill(template: str, facts: dict[str, str]) -> str:
    subject = subject_of(facts)
    text = template.replace("{about}", subject.about).replace("{answer}", subject.answer)
    return text.replace("{item}", facts["item"])


def every_sentence() -> Iterator[str]:
    """Every sentence that any style can use, with `{item}` left open."""
    for bank in (RUDE, REFUSE, SORRY, FILLER, EMPTY):
        yield from bank
    for situation in SITUATIONS:
        yield from (*WARM[situation], *OFFER[situation], *FIRST.get(situation, ()))
        templates = (*NAMED.get(situation, ()), *SECOND.get(situation, ()), *SURE.get(situation, ()))
        for subject in WORLD[situation].values():
            yield from subject.core
            for text in templates:
                yield text.format(about=subject.about, answer=subject.answer, bluff=subject.bluff)


@lru_cache
def known_words() -> frozenset[str]:
    """All words that a reply of the generator may contain, lower case."""
    return frozenset(word for text in every_sentence() for word in re.findall(r"[a-z]+", text)) - {"item"} | set(ITEMS)
