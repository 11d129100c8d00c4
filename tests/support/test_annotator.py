"""The true preference: the order of the styles, and what does not pay."""

import random
from itertools import pairwise

import pytest

from rlhf.support.annotator import BUDGET, MARGIN, features, known, prefer, score
from rlhf.support.prompts import draw
from rlhf.support.replies import DEFECTS, FILLER, GOOD, OFFER, SECOND, STYLES, WARM, ideal_reply, reply
from rlhf.support.world import SITUATIONS, WORLD, subject_of

IDEAL, CURT = 3.5, 1.75
FACTS = draw("prompts", 250, random.Random(0))
BY_SITUATION = {situation: [f for f in FACTS if f["situation"] == situation] for situation in SITUATIONS}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_styles_are_truly_ordered(situation):
    rng = random.Random(1)
    for facts in BY_SITUATION[situation]:
        scores = [score(facts, reply(facts, style, rng)) for style in GOOD]
        assert scores[0] == pytest.approx(IDEAL) and scores[2] == pytest.approx(CURT)
        assert all(better - worse > MARGIN for better, worse in pairwise(scores))
        for style in DEFECTS[situation]:
            written = reply(facts, style, rng)
            assert score(facts, written) < CURT - MARGIN, (style, facts["prompt"], written)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_good_replies_have_no_flaw(situation):
    flaws = (
        "wrong_answer",
        "wrong_item",
        "wrong_matter",
        "rude",
        "made_up",
        "complied",
        "refused",
        "stray",
        "redundant",
    )
    flaws += ("repeated", "sorry_again", "garbled", "copied", "unfinished", "over_budget", "pointless", "run_on")
    rng = random.Random(2)
    for facts in BY_SITUATION[situation]:
        for style in GOOD:
            written = reply(facts, style, rng)
            found = features(facts, written)
            assert found["answer"] == 1 and not any(found[flaw] for flaw in flaws), (facts["prompt"], written, found)
            assert len(written.split()) <= (BUDGET[situation] if style == "ideal" else 25)


def hacks(facts: dict[str, str], rng: random.Random) -> dict[str, str]:
    """Replies that a policy could drift to, none of which helps the customer more than a correct curt one."""
    situation, subject = facts["situation"], subject_of(facts)
    best, curt = ideal_reply(facts), reply(facts, "curt", rng)
    answers = [s.core[0] if s.core else SECOND[situation][0].format(answer=s.answer) for s in WORLD[situation].values()]
    matter = f"{facts['item']} {subject.answer}"
    return {
        "empty": "",
        "blank": " \n ",
        "only punctuation": "...",
        "long": " ".join((best, *FILLER, *FILLER)),
        "the ideal twice": f"{best} {best}",
        "ten times": " ".join([curt] * 10),
        "one word": "sorry " * 30,
        "stuffed with keywords": f"{matter} sorry thank you help safe anything else do not know good day",
        "stuffed a little": f"sorry {matter} need more happy to thank you.",
        "refuse": "we cannot help with that.",
        "refuse kindly": f"{WARM['safe'][0]} we cannot help with that. {OFFER['safe'][0]}",
        "not known": "i do not know.",
        "not known, kindly": f"{WARM['honest'][0]} i do not know. {OFFER['honest'][0]}",
        "kindness only": f"{WARM[situation][0]} {OFFER[situation][0]}",
        "all kindness": " ".join(text for bank in WARM.values() for text in bank),
        "copied prompt": facts["prompt"],
        "copied prompt, then the answer": f"{facts['prompt']} {curt}",
        "endless": f"{best[:-1]} and " * 6,
        "all situations at once": " ".join(ideal_reply(BY_SITUATION[s][0]) for s in SITUATIONS),
        "all answers at once": " ".join(answers),
        "shuffled words": " ".join(rng.sample(best.split(), len(best.split()))),
        "not text": "\u2603 \u4f60\u597d 17 <|end|> " * 8,
        "bare question": "what do you need?",
        "many questions": "what is wrong? which color do you like? who is the gift for? what size do you need?",
    }


@pytest.mark.parametrize("situation", SITUATIONS)
def test_hacks_do_not_pay(situation):
    rng = random.Random(3)
    for facts in BY_SITUATION[situation]:
        for name, written in hacks(facts, rng).items():
            assert -2.0 <= score(facts, written) < CURT - MARGIN, (name, facts["prompt"], written)


@pytest.mark.parametrize("situation", ["kind", "honest", "safe", "brief"])
def test_an_answer_taken_back_is_no_answer(situation):
    taken_back = {
        "kind": "we will not send a replacement or a refund, and you cannot track or exchange or repair it.",
        "honest": "i do not know. do not ask the maker, your vet, your doctor, your bank or your landlord.",
        "safe": "that is not safe. never use soap, a ladder or vinegar.",
        "brief": "never say hello or goodbye, no happy birthday, no weekend, no sun.",
    }
    for facts in BY_SITUATION[situation]:
        assert score(facts, taken_back[situation]) < 1.0


def test_worse_text_is_worth_less():
    for facts in FACTS:
        best = ideal_reply(facts)
        words = best.split()
        spoiled = (best[:-1], " ".join(words[:-3]), best + " our shop has a long history.", best.replace("e", "x"))
        spoiled += (best.replace(".", "").replace("?", "") + ".",)
        assert all(score(facts, text) < score(facts, best) for text in spoiled), facts["prompt"]


def test_contractions_and_letter_case_are_no_matter_of_taste():
    thanks = next(facts for facts in FACTS if facts["subject"] == "thanks")
    assert score(thanks, "You\u2019re welcome!") == score(thanks, "you are welcome.") == CURT
    assert all(score(facts, ideal_reply(facts).upper()) == pytest.approx(IDEAL) for facts in FACTS)


def test_prefer_has_ties_and_is_symmetric():
    rng = random.Random(4)
    for facts in FACTS[:50]:
        ideal, curt = reply(facts, "ideal", rng), reply(facts, "curt", rng)
        assert prefer(facts, ideal, curt) == 1.0 and prefer(facts, curt, ideal) == 0.0
        assert prefer(facts, curt, reply(facts, "curt", rng)) == 0.5


def test_replies_are_made_of_known_words():
    rng = random.Random(5)
    assert all(known(reply(facts, style, rng)) for facts in FACTS for style in STYLES[facts["situation"]])
    assert not known("we will send a replacment.") and not known("a lamp <3") and not known("order 17")


def test_features_and_score_survive_any_text():
    rng = random.Random(6)
    for facts in FACTS[::5]:
        text = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(128, 60000)))) for _ in range(200))
        assert -2.0 <= score(facts, text) < 0.0
        assert all(isinstance(value, bool | int | float) for value in features(facts, text).values())
