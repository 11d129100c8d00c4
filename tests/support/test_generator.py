"""The rows: same for a seed, disjoint across splits, mixed as promised."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from rlhf.support import generator
from rlhf.support.annotator import known, score
from rlhf.support.prompts import SPLITS, capacity, pool, split_of
from rlhf.support.replies import GOOD, STYLES, known_words
from rlhf.support.world import SITUATIONS

BUILDERS = {
    "demonstrations": lambda seed: generator.demonstrations(60, seed),
    "rankings": lambda seed: generator.rankings(60, seed),
    "prompts": lambda seed: generator.prompts(60, seed),
    "evaluation": lambda seed: generator.evaluation(60, seed),
    "text": lambda seed: generator.text(60, seed),
}
DIGEST = (
    "import hashlib, json; from rlhf.support import generator as g;"
    "rows = [g.demonstrations(60, 3), g.rankings(60, 3), g.prompts(60, 3), g.evaluation(60, 3), g.text(60, 3)];"
    "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())"
)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_seed_decides_the_rows(build):
    assert build(3) == build(3) != build(4)


def test_rows_are_the_same_in_another_process():
    here = hashlib.sha256(json.dumps([build(3) for build in BUILDERS.values()]).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, env=environment)
    assert there.stdout.strip() == here


def test_splits_share_no_content_and_no_prompt():
    facts = {
        split: [f for subjects in pool(split).values() for fs in subjects.values() for f in fs] for split in SPLITS
    }
    for a, b in combinations(SPLITS, 2):
        for key in ("content", "prompt"):
            assert not {f[key] for f in facts[a]} & {f[key] for f in facts[b]}, (a, b, key)
    assert all(split_of(f["content"]) == split for split in SPLITS for f in facts[split])


def test_every_subject_occurs_in_every_split():
    for split in SPLITS:
        assert all(len(facts) >= 5 for subjects in pool(split).values() for facts in subjects.values()), split


def test_rows_come_from_the_split_they_are_named_after():
    seen = {
        "demonstrations": generator.demonstrations(1600, 0),
        "demonstrations_held_out": generator.demonstrations(200, 0, held_out=True),
        "rankings": generator.rankings(700, 0),
        "rankings_held_out": generator.rankings(150, 0, held_out=True),
        "prompts": generator.prompts(2000, 0),
        "evaluation": generator.evaluation(200, 0),
    }
    for split, rows in seen.items():
        assert len({row["prompt"] for row in rows}) == len(rows)
        assert {split_of(row["facts"]["content"]) for row in rows} == {split}
        counts = Counter(row["facts"]["situation"] for row in rows)
        assert set(counts) == set(SITUATIONS) and max(counts.values()) == min(counts.values())


def test_pretraining_text_takes_prompts_of_the_demonstrations_only():
    own = {f["prompt"] for subjects in pool("demonstrations").values() for fs in subjects.values() for f in fs}
    documents = [row["text"] for row in generator.text(2000, 0)]
    unseen = [row["text"] for row in generator.text(500, 0, held_out=True)]
    asked = {text.removeprefix("<|user|>").split("<|end|>")[0] for text in unseen}
    assert asked and not asked & own
    assert {text.removeprefix("<|user|>").split("<|end|>")[0] for text in documents} <= own
    assert all(text.endswith("<|end|>") and text.isascii() for text in documents)


def test_a_split_that_is_too_small_says_how_much_it_has():
    most = capacity("evaluation")
    assert len(generator.evaluation(most, 0)) == most
    with pytest.raises(ValueError, match=rf"rows = {most + 5} .* at most {most} rows are available"):
        generator.evaluation(most + 5, 0)


def test_facts_are_flat_strings_with_the_same_keys():
    rows = [row for name in ("demonstrations", "rankings", "prompts", "evaluation") for row in BUILDERS[name](0)]
    assert len({tuple(row["facts"]) for row in rows}) == 1
    assert all(isinstance(value, str) for row in rows for value in row["facts"].values())
    assert all(row["facts"]["prompt"] == row["prompt"] for row in rows)


def test_demonstrations_are_mostly_right_and_curt():
    rows = generator.demonstrations(1600, 0)
    styles = Counter(row["style"] for row in rows)
    for style, share in {"curt": 0.65, "partial": 0.20, "ideal": 0.10}.items():
        assert styles[style] / len(rows) == pytest.approx(share, abs=0.03)
    assert sum(styles[style] for style in styles if style not in GOOD) / len(rows) == pytest.approx(0.05, abs=0.02)
    assert 1.75 < sum(score(row["facts"], row["completion"]) for row in rows) / len(rows) < 2.2


def test_lengths():
    rows = generator.demonstrations(1600, 1)
    assert all(6 <= len(row["prompt"].split()) <= 22 for row in rows)
    words = {style: [len(r["completion"].split()) for r in rows if r["style"] == style] for style in GOOD}
    assert max(words["ideal"]) <= 32
    assert sum(n <= 9 for n in words["curt"]) / len(words["curt"]) > 0.8 and max(words["curt"]) <= 15


def test_replies_use_a_small_vocabulary():
    assert len(known_words()) <= 350
    assert all(known(row["completion"]) for row in generator.demonstrations(800, 2))
    assert all(known(text) for row in generator.rankings(300, 2) for text in row["replies"])


def test_ideal_reply_is_fixed_and_an_unknown_style_is_refused():
    for row in generator.evaluation(50, 0):
        facts = row["facts"]
        assert generator.ideal_reply(facts) == generator.ideal_reply(dict(facts))
        with pytest.raises(ValueError, match=f"style = 'baroque' does not exist for '{facts['situation']}'"):
            generator.reply(facts, "baroque", random.Random(0))


@pytest.mark.parametrize("k", [1, 1 + min(map(len, STYLES.values()))])
def test_rankings_refuse_a_k_they_cannot_serve(k):
    with pytest.raises(ValueError, match=f"k = {k} "):
        generator.rankings(5, 0, k=k)
