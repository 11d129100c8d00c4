"""What the recipes need beyond the rest: trees, contexts, cut prompts, a loss on all tokens, wider adapters."""

import pytest
import torch

from rlhf.config import compose_config, to_stage
from rlhf.data import contract
from rlhf.data.prepare import prepare
from rlhf.data.rows import Row
from rlhf.data.trees import rankings
from rlhf.errors import ConfigError
from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer
from tests.recipes.rows import TREES


@pytest.fixture
def prepared(tmp_path, local):
    """`prepared("zephyr-7b/sft", ...)`: its tokenizer, its data as prepared from local files, and its stage."""

    def build(recipe, *overrides):
        own = [f"recipes={recipe}", f"run.root={tmp_path}", *local(recipe), *overrides]
        stage = to_stage(compose_config(own))
        tokenizer = load_tokenizer(stage)
        return tokenizer, prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer)), stage

    return build


def test_a_tree_gives_the_ranked_replies_to_each_message():
    rows = list(rankings(Row(f"oasst:{i}", values) for i, values in enumerate(TREES)))
    assert (
        len(rows) == 2 * 24 + 1
    )  # of the last tree, one reply to its root is ranked; the orphans have no way to a root
    first, second = rows[:2]
    assert first.values == {
        "prompt": [{"role": "user", "content": "Question 0?"}],
        "replies": ["Reply 0 to 0.", "Reply 1 to 0.", "Reply 2 to 0."],
        "ranks": [1, 0, 2],
    }
    assert [turn["role"] for turn in second.values["prompt"]] == ["user", "assistant", "user"]
    pairs = list(contract.pairs(to_stage(compose_config(["recipes=instructgpt-rm/reward"])).dataset, first))
    assert [(pair.chosen[0]["content"][6], pair.rejected[0]["content"][6], pair.k) for pair in pairs] == [
        ("1", "0", 3),
        ("0", "2", 3),
        ("1", "2", 3),
    ]


def test_a_deleted_or_unranked_reply_is_no_part_of_a_ranking():
    rows = [dict(row) for row in TREES[:4]]
    rows[1]["deleted"] = True
    (ranking,) = rankings(Row("here", row) for row in rows)
    assert ranking.values["ranks"] == [0, 2]
    rows[2]["rank"] = None
    assert not list(rankings(Row("here", row) for row in rows))


@pytest.mark.parametrize("context, asked", [("A passage.", "Do it.\n\nA passage."), ("", "Do it."), (None, "Do it.")])
def test_a_context_stands_below_its_prompt(context, asked):
    dataset = to_stage(compose_config(["recipes=hh-qwen2.5-0.5b/sft"])).dataset
    row = Row("here", {"instruction": "Do it.", "context": context, "response": "Done."})
    assert (
        contract.dialogue(dataset, row).messages[0]["content"]
        == contract.prompt(dataset, row).messages[-1]["content"]
        == asked
    )


def test_the_loss_counts_replies_or_everything(prepared):
    masks = {}
    for learn in ("replies", "all"):
        _, data, _ = prepared("zephyr-7b/sft", f"method.learn={learn}")
        masks[learn] = [[label != -100 for label in row["labels"]] for row in data.train]
    assert all(all(row) for row in masks["all"]) and not any(all(row) for row in masks["replies"])


def test_prompts_are_the_first_tokens_of_a_text(prepared):
    tokenizer, data, stage = prepared("imdb-gpt2-large/ppo")
    lengths = [len(ids) for ids in data.train["input_ids"]]
    assert set(lengths) <= set(range(2, 9)) and len(set(lengths)) > 3
    assert "This film is number 0".startswith(data.train[0]["prompt"])
    _, again, _ = prepared("imdb-gpt2-large/ppo", "seed=7")
    assert again.train["input_ids"] == data.train["input_ids"], "the prompts are the dataset's, not the seed's"


def test_an_empty_system_turn_is_put_first_and_not_twice(prepared):
    tokenizer, data, _ = prepared("zephyr-7b/dpo")
    texts = [tokenizer.decode(ids) for ids in data.train["prompt_ids"]]
    assert all(text.startswith("<|system|>\n</s>\n<|user|>") and text.count("<|system|>") == 1 for text in texts)


@pytest.mark.parametrize("recipe", ["zephyr-7b/ppo", "tldr-pythia-1b/ppo", "hh-qwen2.5-0.5b/ppo"])
def test_ppo_leaves_out_and_counts_the_prompts_over_the_limit(prepared, recipe):
    _, data, stage = prepared(recipe)
    ledger, limit = data.ledger["train"], stage.dataset.max_prompt_length
    assert ledger["dropped"]["too long"] == 1 and ledger["read"] == ledger["kept"] + sum(ledger["dropped"].values())
    assert max(len(ids) for ids in data.train["input_ids"]) <= limit
    _, shorter, _ = prepared(
        recipe, f"dataset.max_prompt_length={max(len(ids) for ids in data.train['input_ids']) - 1}"
    )
    assert shorter.ledger["train"]["dropped"]["too long"] > 1


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_a_wider_adapter_on_more_layers_computes_what_the_stored_one_did(prepared, tmp_path, task):
    from rlhf.models.adapters import with_adapter
    from rlhf.models.base import load_base, save_final

    narrow = ("adapter.args.r=2", "adapter.args.lora_alpha=4", "adapter.args.target_modules=[q_proj,v_proj]")
    tokenizer, _, stage = prepared("zephyr-7b/sft", "adapter.args.lora_dropout=0", *narrow)
    first = with_adapter(stage, load_base(stage, tokenizer), None, "CAUSAL_LM")
    torch.manual_seed(0)
    for name, parameter in first.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    save_final(first, tokenizer, tmp_path / "narrow")
    wide = ("adapter.args.r=8", "adapter.args.lora_alpha=8", "adapter.args.lora_dropout=0")
    _, _, stage = prepared("zephyr-7b/sft", *wide)
    base = load_base(stage, tokenizer, reward=task == "SEQ_CLS")
    second = with_adapter(stage, base, str(tmp_path / "narrow"), task)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    states = [
        (model.base_model.model.model(input_ids=ids).last_hidden_state) for model in (first.eval(), second.eval())
    ]
    assert torch.allclose(states[0], states[1], atol=1e-5)
    ranks = {p.shape[0] for n, p in second.named_parameters() if ".lora_A." in n}
    assert ranks == {8} and sum(".lora_A." in n for n, _ in second.named_parameters()) == 7
    with second.disable_adapter():
        assert not torch.allclose(states[0], second.base_model.model.model(input_ids=ids).last_hidden_state, atol=1e-2)


def test_a_narrower_adapter_or_other_layers_are_refused(prepared, tmp_path):
    from rlhf.models.adapters import with_adapter
    from rlhf.models.base import load_base, save_final

    tokenizer, _, stage = prepared("zephyr-7b/sft")
    save_final(with_adapter(stage, load_base(stage, tokenizer), None, "CAUSAL_LM"), tokenizer, tmp_path / "sft")
    for override, message in (
        ("r=4", "has rank 16\n  fix: adapter.args.r=16 or more"),
        (
            "target_modules=[q_proj]",
            "0 tensors are missing .* have no place .*\n  fix: the adapter.args.target_modules",
        ),
    ):
        _, _, other = prepared("zephyr-7b/sft", f"adapter.args.{override}")
        with pytest.raises(ConfigError, match=message):
            with_adapter(other, load_base(other, tokenizer), str(tmp_path / "sft"), "CAUSAL_LM")


def test_policies_that_were_asked_other_prompts_stand_apart():
    from rlhf.reports.recipe import comparable

    asked = {"sft": ["a", "b"], "dpo": ["c"], "ppo": ["c"]}
    samples = {name: [{"prompt": prompt} for prompt in prompts] for name, prompts in asked.items()}
    kept, apart = comparable(samples)
    assert list(kept) == ["dpo", "ppo"] and apart == ["sft"]
    samples["sft"] = [{"prompt": "c"}, {"prompt": "a"}]
    assert comparable(samples) == ({name: [{"prompt": "c"}] for name in asked}, [])
