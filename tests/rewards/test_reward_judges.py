"""Reward models and rules as judges, tied to what they score in training, and what is refused."""

import json

import pytest
import torch

from rlhf.errors import ConfigError, GuardStop
from rlhf.evaluation.judges import load_judge
from rlhf.rewards import named
from rlhf.rewards.scorers import RoleScorer

PROMPTS = [[1, 9, 8, 7, 6], [1, 5], [1, 30, 31]]
REPLIES = [[50, 2], [60, 61, 62, 63, 2], [70]]
ROWS = [{}] * 3
SAMPLES = [{"prompt": "?", "prompt_ids": p, "ids": r, "reply": "w70"} for p, r in zip(PROMPTS, REPLIES, strict=True)]


def test_an_adapter_judges_on_the_base_of_the_stage(workshop, folders, stage_of, tmp_path):
    stage = stage_of("function:exact_match", method__reward_label="positive")  # the arm's own reward does not matter
    judge = load_judge(f"reward:{folders / 'second'}", stage, workshop.tokenizer, tmp_path)
    role = workshop.roles(quantized=True, reward=folders / "second").reward
    assert judge.scores(SAMPLES) == pytest.approx(RoleScorer(role, 0)(PROMPTS, REPLIES, ROWS).tolist(), abs=1e-5)
    others = [SAMPLES[0] | {"ids": [80, 2]}, SAMPLES[1], SAMPLES[2] | {"ids": [70, 2]}]
    found, ours, theirs = judge.compare(SAMPLES, others), judge.scores(SAMPLES), judge.scores(others)
    wanted = [float(ours[0] > theirs[0]), 0.5, float(ours[2] > theirs[2])]  # an end of its own is another reply
    assert found.shown_first == found.shown_second == wanted and judge.compare(others, SAMPLES).outcomes[1] == 0.5
    unsampled = {key: value for key, value in SAMPLES[0].items() if key != "ids"}
    assert judge.scores([unsampled]) == pytest.approx(judge.scores([SAMPLES[0] | {"ids": [70, 2]}]), abs=1e-5)
    judge.scorer.role.head.linear.weight.data.fill_(float("nan"))
    with pytest.raises(GuardStop, match=r"judge=reward:.*second scored nan on prompt 0"):
        judge.compare(SAMPLES, others)


def test_a_classifier_judges_by_a_label_of_its_own(workshop, folders, stage_of, tmp_path):
    stage = stage_of("function:exact_match", quantization="none")
    scores = {}
    for label in ("neutral", "positive"):
        judge = load_judge(f"reward:{folders / 'bert'}#{label}", stage, workshop.tokenizer, tmp_path)
        scores[label] = judge.scores(SAMPLES)
    alone = named.load_scorer(
        named.named_reward(str(folders / "bert"), stage, workshop.tokenizer, "neutral"), stage, workshop.tokenizer
    )
    assert scores["neutral"] == pytest.approx(alone(PROMPTS, REPLIES, ROWS).tolist(), abs=1e-5) != scores["positive"]


def test_a_chat_model_judges_the_messages_of_a_sample(workshop, folders, stage_of, tmp_path):
    stage = stage_of("function:exact_match", quantization="none")
    judge = load_judge(f"reward:{folders / 'chat'}", stage, workshop.tokenizer, tmp_path)
    turns = json.dumps([{"role": "user", "content": "w9 w8"}])
    told = judge.scores([sample | {"messages": turns} for sample in SAMPLES])
    assert told == pytest.approx(judge.scorer(PROMPTS, REPLIES, [{"messages": turns}] * 3).tolist(), abs=1e-5)
    assert told != pytest.approx(judge.scores(SAMPLES), abs=1e-3)


def test_whole_models_and_rules_judge(workshop, folders, stage_of, tmp_path):
    whole = stage_of("function:exact_match", adapter="none", quantization="none", method__start_from=workshop.base)
    judge = load_judge(f"reward:{folders / 'full'}", whole, workshop.tokenizer, tmp_path)
    score = workshop.load_reward(folders / "full")
    with torch.no_grad():
        wanted = [float(score(torch.tensor([p + r])).logits) for p, r in zip(PROMPTS, REPLIES, strict=True)]
    assert judge.scores(SAMPLES) == pytest.approx(wanted, abs=1e-5)
    rule = load_judge("reward:function:exact_match", whole, workshop.tokenizer, tmp_path)
    right = [sample | {"reference": workshop.tokenizer.decode(sample["ids"][:1])} for sample in SAMPLES]
    assert rule.scores(right) == [1.0, 0.0, 1.0]
    with pytest.raises(ConfigError, match="judge=function:exact_match: compares with `reference`"):
        rule.scores(SAMPLES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "bert",
            r"judge=reward:\S*bert: has 3 labels, and none is chosen\n  allowed: .*\n  fix: 'judge=reward:.*bert#positive'",
        ),
        ("bert#positiv", "bert#positiv is none of them; did you mean positive"),
        ("second#positive", "has no labels to choose from"),
        ("nowhere", "judge=reward:.*nowhere: AutoConfig can't load it"),
        ("sft", "is not the adapter of a reward model"),
        ("function:exact", "judge=reward:function:exact: not a function; did you mean exact_match"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused(workshop, folders, stage_of, tmp_path, name, message):
    place = {"sft": workshop.sft, "function:exact": "function:exact"}.get(name, folders / name)
    with pytest.raises(ConfigError, match=message):
        load_judge(f"reward:{place}", stage_of("function:exact_match"), workshop.tokenizer, tmp_path)


@pytest.mark.parametrize("place", ["rlhf.rewards.named.load_base", "rlhf.models.shared.fill_adapter"])
def test_a_bug_in_loading_a_judge_is_not_told_as_configuration(
    workshop, folders, stage_of, tmp_path, monkeypatch, place
):
    def bug(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(place, bug)
    whole = {"adapter": "none", "quantization": "none", "method__start_from": workshop.base}
    name, settings = ("full", whole) if "load_base" in place else ("second", {})
    with pytest.raises(ValueError, match="a bug") as caught:
        load_judge(
            f"reward:{folders / name}", stage_of("function:exact_match", **settings), workshop.tokenizer, tmp_path
        )
    assert not isinstance(caught.value, ConfigError)
