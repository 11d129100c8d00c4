"""Who scores replies: ensembles of adapters, classifiers with a tokenizer of their own, rules; what is refused, and when."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification
from transformers import PreTrainedTokenizerFast as Fast

from rlhf.data import contract
from rlhf.data.sources import Row
from rlhf.errors import ConfigError, StageError
from rlhf.methods import ppo
from rlhf.methods.arguments import training_arguments
from rlhf.preflight.settings import check_settings
from rlhf.rewards import named
from rlhf.rewards.functions import RULES
from rlhf.rewards.scorers import RoleScorer, TextScorer
from rlhf.runs import record
from rlhf.support import annotator, generator

PROMPTS = [[1, 9, 8, 7, 6], [1, 5], [1, 30, 31]]
REPLIES = [[50, 2], [60, 61, 62, 63, 2], [70]]
ROWS = [{}] * 3


def rows(n=4):
    ids = [[1, 5 + i, 6] for i in range(n)]
    spare = {"messages": ["null"] * n, "reference": ["w7"] * n, "facts": ["null"] * n}
    return SimpleNamespace(train=Dataset.from_dict({"input_ids": ids, **spare}), eval=None)


@pytest.mark.parametrize("how", ["mean", "minimum", "mean_minus_spread"])
def test_an_ensemble_of_adapters_shares_the_base(workshop, folders, stage_of, how):
    stage = stage_of(workshop.reward, folders / "second", method__args__reward_combination=how)
    check_settings(stage)
    trainer = ppo.build(stage, workshop.tokenizer, rows())
    base = trainer.policy.model
    assert sorted(trainer.policy.peft.peft_config) == ["policy", "reference", "reward", "reward1", "value"]
    assert any(type(module).__name__ == "Linear4bit" for module in base.modules())
    members = trainer.loop.scorer.scorers
    assert all(isinstance(m, RoleScorer) and m.role.model is base for m in members)
    single = [workshop.roles(quantized=True, reward=folder).reward for folder in (workshop.reward, folders / "second")]
    a, b = (RoleScorer(role, 0)(PROMPTS, REPLIES, ROWS) for role in single)
    assert not torch.allclose(a, b, atol=0.1)
    wanted = {"mean": (a + b) / 2, "minimum": torch.minimum(a, b), "mean_minus_spread": (a + b) / 2 - (a - b).abs() / 2}
    assert torch.allclose(trainer.loop.scorer(PROMPTS, REPLIES, ROWS), wanted[how], atol=1e-5)
    first = single[0].head.linear.weight
    assert torch.equal(trainer.value.head.linear.weight, first) and trainer.value.head.linear.weight is not first
    before = {n: p.detach().clone() for n, p in trainer.policy.peft.named_parameters() if ".reward" in n}
    trainer.train()
    assert all(torch.equal(before[n], p) for n, p in trainer.policy.peft.named_parameters() if n in before) and before


def test_a_classifier_reads_text_with_its_own_tokenizer(workshop, folders, stage_of):
    stage = stage_of(folders / "bert", method__reward_label="neutral", quantization="none")
    trainer = ppo.build(stage, workshop.tokenizer, rows())
    (scorer,) = trainer.loop.scorer.scorers
    plain = BertForSequenceClassification.from_pretrained(folders / "bert").eval()
    wanted = []
    for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
        kept = [i for i in prompt + reply if i > 3]  # the words, without <s> and </s>
        ids = [2 + 95 - i for i in kept]  # its vocabulary runs backwards
        with torch.no_grad():
            wanted.append(float(plain(torch.tensor([ids])).logits[0, 1]))
    assert scorer(PROMPTS, REPLIES, ROWS).tolist() == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.05
    assert not trainer.value.head.linear.weight.any(), "no reward adapter to start from: every value is 0"
    trainer.train()
    assert trainer.value.head.linear.weight.any()


def test_a_text_beyond_the_context_keeps_its_end(folders, workshop, capsys):
    model = BertForSequenceClassification.from_pretrained(folders / "bert").eval()
    scorer = TextScorer(model, Fast.from_pretrained(folders / "bert"), workshop.tokenizer, 2)
    long = [list(range(10, 60))]
    cut = [list(range(36, 60))]
    assert scorer(long, [[70]] * 1, ROWS[:1]).tolist() != scorer(cut, [[71]], ROWS[:1]).tolist()
    assert scorer([long[0][-23:]], [[70]], ROWS[:1]).tolist() == scorer(long, [[70]], ROWS[:1]).tolist()
    assert capsys.readouterr().out.count("is scored by its last 24") == 1


def test_a_chat_model_reads_messages_by_its_own_template(workshop, folders, stage_of):
    rewards = named.named_rewards(stage_of(folders / "chat", quantization="none"), workshop.tokenizer, rows().train)
    scorer = named.load_scorer(rewards[0], stage_of(folders / "chat", quantization="none"), workshop.tokenizer)
    turns = [{"role": "user", "content": "w9 w8"}]
    ids = scorer.encode([1, 9, 8], [50, 51, 2], {"messages": json.dumps(turns)})
    assert scorer.tokenizer.convert_ids_to_tokens(ids) == ["<user>", "w9", "w8", "<assistant>", "w50", "w51"]
    bare = scorer.encode([1, 9, 8], [50, 51, 2], {"messages": "null"})
    assert scorer.tokenizer.convert_ids_to_tokens(bare) == ["w9", "w8", "w50", "w51"]
    together = scorer(PROMPTS, REPLIES, ROWS)
    scorer.tokenizer.pad_token = None  # nothing to pad with: one text at a time
    assert torch.allclose(scorer(PROMPTS, REPLIES, ROWS), together, atol=1e-6)


def test_full_weights_with_the_policys_tokenizer_read_its_ids(workshop, folders, stage_of):
    whole = {"adapter": "none", "quantization": "none", "method__start_from": workshop.base}
    rewards = named.named_rewards(stage_of(folders / "full", **whole), workshop.tokenizer, rows().train)
    assert [reward.kind for reward in rewards] == ["ids"]
    mixed = stage_of(folders / "full", folders / "chat", "function:exact_match", **whole)
    trainer = ppo.build(mixed, workshop.tokenizer, rows())
    kinds = [type(member).__name__ for member in trainer.loop.scorer.scorers]
    assert kinds == ["RoleScorer", "TextScorer", "FunctionScorer"]
    score = workshop.load_reward(folders / "full")
    with torch.no_grad():
        wanted = [float(score(torch.tensor([p + r])).logits) for p, r in zip(PROMPTS, REPLIES, strict=True)]
    assert trainer.loop.scorer.scorers[0](PROMPTS, REPLIES, ROWS).tolist() == pytest.approx(wanted, abs=1e-5)
    trainer.train()
    alone = ppo.build(stage_of("function:exact_match", **whole), workshop.tokenizer, rows())
    assert not alone.value.head.linear.weight.any(), "no reward model to start from: every value is 0"


def test_rules():
    def score(name, reply, row):
        return RULES[name].score([""], [reply], [row])[0]

    assert score("exact_match", " yes ", {"reference": "yes"}) == 1
    assert score("exact_match", "yes!", {"reference": "yes"}) == 0
    assert score("last_number", "3 + 4 = 1,007.0", {"reference": "#### 1007"}) == 1
    assert score("last_number", "17", {"reference": "18"}) == score("last_number", "none", {"reference": "none"}) == 0
    facts = generator.prompts(1, seed=0)[0]["facts"]
    assert score("support", " hello ", {"facts": json.dumps(facts)}) == annotator.score(facts, "hello")


def test_the_reply_that_a_row_gives_is_its_reference(compose_stage):
    def reference(columns, values):
        dataset = compose_stage("dataset=local_pairs", "dataset.path=x.jsonl").dataset
        dataset.columns = columns
        return contract.reference(dataset, Row("x:1", values))

    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert reference({"prompt": "q", "completion": "a"}, {"q": "2 + 2", "a": "4"}) == "4"
    assert reference({"messages": "m"}, {"m": talk}) == "b"
    assert reference({"prompt": "q"}, {"q": "2 + 2"}) == ""


REFUSED = {
    "bert: has 3 labels, and none is chosen\n  allowed: negative, neutral, positive\n  fix: method.reward_label=": (
        ["bert"],
        {},
    ),
    "reward_label=positiv is none of them; did you mean positive": (["bert"], {"method__reward_label": "positiv"}),
    "=positive: no reward model of this run has labels\n  fix: method.reward_label=null": (
        ["second"],
        {"method__reward_label": "positive"},
    ),
    "base: is a LlamaForCausalLM, which does not score\n  fix: a model for sequence": (["../base"], {}),
    "nowhere: AutoConfig can't load it: ": (["nowhere"], {}),
    "a sequence classifier with its tokenizer, function:<name>\n  fix: check the name": (["nowhere"], {}),
    "second: holds an adapter, which needs a shared base\n  fix: adapter=lora, or": (
        ["second"],
        {"adapter": "none", "quantization": "none"},
    ),
    "support: compares with `facts`, which rows of generator:support/prompts lack\n  fix: dataset.columns with": (
        ["function:support"],
        {},
    ),
    "trained on the base ": (["second"], {"model__path": "somewhere/else"}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_reward_that_cannot_work_is_refused_before_any_weight(
    workshop, folders, stage_of, message, monkeypatch, tmp_path
):
    def loading(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(ppo, "load_base", loading)
    names, settings = REFUSED[message]
    places = {"../base": workshop.base, "nowhere": tmp_path / "nowhere"}
    given = [n if n.startswith("function:") else places.get(n, folders / n) for n in names]
    with pytest.raises(ConfigError) as caught:
        ppo.build(stage_of(*given, **settings), workshop.tokenizer, rows())
    assert message in str(caught.value)


def test_another_tokenizer_is_refused_before_any_weight(workshop, folders, stage_of, monkeypatch):
    monkeypatch.setattr(ppo, "load_base", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigError, match=r"method.reward_model=.* differs from the policy's in \d+ tokens"):
        ppo.build(stage_of(workshop.reward), workshop.words("[UNK]", "[PAD]", pad_token="[PAD]"), rows())


@pytest.mark.parametrize(
    "given, message",
    [
        ("null", "ppo needs somebody who scores replies"),
        ("[]", "ppo needs somebody who scores replies"),
        ("{a: 1}", "ppo needs somebody who scores replies"),
        (
            "function:exact_mach",
            "function:exact_mach: not a function; did you mean exact_match?\n  allowed: function:exact_match, ",
        ),
        ("[function:exact_match,function:rouge]", "function:rouge: not a function"),
        ("[function:exact_match,./nowhere]", "method.reward_model=./nowhere: no such folder"),
    ],
)
def test_a_malformed_reward_is_refused_from_the_configuration_alone(stage_of, given, message):
    with pytest.raises(StageError) as caught:
        check_settings(stage_of(given))
    assert message in str(caught.value)


def test_a_misspelt_combination_is_refused(stage_of):
    with pytest.raises(ConfigError, match=r"reward_combination='minimun' is not one of .*; did you mean minimum"):
        training_arguments(stage_of("function:exact_match", method__args__reward_combination="minimun"))


def test_every_member_counts_for_what_a_run_followed_from(stage_of, folders, workshop):
    one, two = stage_of(workshop.reward), stage_of(workshop.reward, folders / "second")
    assert record.inputs(one)["config"] != record.inputs(two)["config"]
    assert {str(workshop.reward), str(folders / "second")} <= {entry["stage"] for entry in record.lineage(two)}


# by VADER's own README, the first three; "not" turns the last around
KIND = {
    "VADER is smart, handsome, and funny.": 0.8316,
    "The book was good.": 0.4404,
    "Today SUX!": -0.5461,
    "The book was not good.": -0.3412,
    "The book was": 0.0,
}


def test_sentiment_is_what_vader_says_of_prompt_and_reply_together():
    score = RULES["sentiment"].score
    prompts, replies = zip(*((text[:9], text[9:]) for text in KIND), strict=True)
    assert score(prompts, replies, ROWS * 2) == pytest.approx(list(KIND.values()), abs=1e-4)
    assert score(["The book was not"], [" good."], ROWS[:1]) == pytest.approx([-0.3412], abs=1e-4)


def test_a_rule_that_reads_no_column_asks_nothing_of_the_rows(workshop, stage_of, monkeypatch):
    assert RULES["sentiment"].reads is None and RULES["exact_match"].reads == "reference"
    stage = stage_of("function:sentiment")
    check_settings(stage)
    bare = rows()
    bare.train = bare.train.map(lambda _: {"messages": "null", "reference": None, "facts": "null"})
    (reward,) = named.named_rewards(stage, workshop.tokenizer, bare.train)
    assert reward.kind == "function"
    trainer = ppo.build(stage, workshop.tokenizer, bare)
    asked = []
    (scorer,) = trainer.loop.scorer.scorers
    monkeypatch.setattr(
        scorer, "function", lambda prompts, replies, rows: asked.append(replies) or [0.5] * len(replies)
    )
    trainer.train()
    assert sum(map(len, asked)) >= 8 and all(isinstance(reply, str) for replies in asked for reply in replies)


def test_a_rule_without_its_package_is_refused_with_the_line_that_installs_it(
    stage_of, monkeypatch, workshop, tmp_path
):
    from rlhf.evaluation.judges import load_judge
    from rlhf.rewards import functions

    monkeypatch.setattr(functions, "find_spec", lambda name: None)
    stage = stage_of("function:sentiment")
    told = "function:sentiment: needs the package vaderSentiment==3.3.2\n  fix: pip install vaderSentiment==3.3.2"
    with pytest.raises(StageError) as caught:
        check_settings(stage)
    assert f"method.reward_model={told}" in str(caught.value)
    check_settings(stage_of("function:exact_match"))
    with pytest.raises(ConfigError, match="judge=reward:function:sentiment: needs the package vaderSentiment"):
        load_judge("reward:function:sentiment", stage, workshop.tokenizer, tmp_path)
