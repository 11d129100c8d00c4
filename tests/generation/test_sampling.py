"""Sampling, padding and layout: EOS and pad edge cases, and replies that do not depend on their neighbours."""

import warnings

import pytest
import torch
from datasets import Dataset

from rlhf.generation.batches import lay_out, reply_mask
from rlhf.generation.cache import cache_argument
from rlhf.generation.rows import Batch, Row, Text
from rlhf.generation.sampling import choose, left_pad, sample_replies, stream
from rlhf.ppo.loop import PromptOrder
from rlhf.ppo.update import minibatches

PROMPTS = [[1, 9, 8, 7, 6], [1, 5], [1, 30, 31], [1, 40, 41, 42]]


def reply(roles, prompts=PROMPTS, **options):
    defaults = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "eos_ids": (2, 3),
        "pad_id": 0,
        "generator": stream(1, "test", 0),
        "chunk_size": 4,
    }
    return sample_replies(roles.policy, prompts, **{**defaults, **options})


@pytest.fixture(scope="module")
def roles(workshop):
    return workshop.roles()


def test_the_cache_goes_by_the_name_that_the_model_has_for_it(workshop, roles):
    """transformers 5.24 calls it `cache` and warns of `past_key_values`, which 5.23 needs; a model of its own may lag behind."""

    class Old(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, use_cache=None): ...

    class New(torch.nn.Module):
        def forward(self, input_ids, cache=None, use_cache=None): ...

    assert [cache_argument(model) for model in (Old(), New())] == ["past_key_values", "cache"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled = reply(roles, temperature=0.0)
        row = Row(PROMPTS[0], 12, Text(workshop.tokenizer))
        batch = Batch(roles.policy, [row], (2, 3), 0)
        while not row.done:
            batch.step()
    assert row.text.ids and row.text.ids == sampled.tokens[0][: len(row.text.ids)]


def test_greedy_equals_generate(workshop, roles):
    ids, mask = left_pad(PROMPTS, 0, torch.device("cpu"))
    ours = reply(roles, temperature=0.0, eos_ids=())
    with roles.policy.active():
        theirs = roles.policy.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            suppress_tokens=[0],
        )
    assert ours.tokens == theirs[:, ids.shape[1] :].tolist()
    assert ours.ended == [False] * 4


def test_several_eos_ids_end_a_reply(roles):
    free = reply(roles, eos_ids=())
    stops = (free.tokens[0][3], free.tokens[1][0])
    cut = reply(roles, eos_ids=stops)
    for tokens, full, ended in zip(cut.tokens, free.tokens, cut.ended, strict=True):
        hits = [i for i, t in enumerate(full) if t in stops]
        assert ended == bool(hits)
        assert tokens == (full[: hits[0] + 1] if hits else full)
    assert len(cut.tokens[1]) == 1  # EOS as the first token is a reply of one token


def test_replies_do_not_depend_on_their_chunk(roles):
    whole = reply(roles)
    assert reply(roles, chunk_size=1).tokens == whole.tokens
    assert reply(roles, chunk_size=3).tokens == whole.tokens


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3])).expand(20_000, 3).clone()
    logits[:, 0] = -1e30
    chosen, logprobs = choose(logits, torch.rand(20_000, generator=stream(0, "t", 0), dtype=torch.float64))
    share = torch.bincount(chosen, minlength=3) / 20_000
    assert share[0] == 0
    assert share[1:].tolist() == pytest.approx([2 / 3, 1 / 3], abs=0.02)
    assert torch.allclose(logprobs.exp(), torch.where(chosen == 1, 2 / 3, 1 / 3))
    edge, _ = choose(torch.tensor([[0.0, -1e30]]), torch.tensor([1.0], dtype=torch.float64))
    assert edge.tolist() == [0]


def test_two_levels_of_sampling_equal_one():
    logits = torch.randn(500, 999, generator=stream(0, "logits", 0)) * 3
    uniforms = torch.rand(500, generator=stream(0, "u", 0), dtype=torch.float64)
    chosen, _ = choose(logits, uniforms, block=64)
    plain = torch.searchsorted(torch.softmax(logits.double(), -1).cumsum(-1), uniforms.unsqueeze(-1)).squeeze(-1)
    assert (chosen == plain).float().mean() > 0.99


def test_pad_is_never_sampled_and_has_no_probability(roles, workshop):
    weight = roles.policy.model.lm_head.weight
    before = weight[0].clone()
    with torch.no_grad():
        weight[0] = 50 * weight[5:].mean(0)  # a model that loves pad
    try:
        assert all(0 not in tokens for tokens in reply(roles).tokens)
    finally:
        with torch.no_grad():
            weight[0] = before


def test_gradient_checkpointing_does_not_reach_sampling(roles):
    plain = reply(roles, temperature=0.0)
    model = roles.policy.model
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    try:
        assert reply(roles, temperature=0.0).tokens == plain.tokens
        assert model.training
    finally:
        model.eval()
        model.activation_checkpointing_disable()


def test_layout_addresses_every_token_once():
    replies = [[7, 2], [8], [9, 9, 9], [4, 4, 4, 4]]
    mask = reply_mask(replies, torch.device("cpu"))
    assert mask.sum(1).tolist() == [2, 1, 3, 4]
    seen = torch.zeros(mask.shape)
    for batch in lay_out(PROMPTS, replies, 2, 0, torch.device("cpu")):
        batch.put(seen, torch.ones(batch.tokens))
        for row, state, target in zip(batch.row, batch.state, batch.target, strict=True):
            assert batch.ids[row, state + 1] == target
        assert [int(batch.ids[k, batch.last[k]]) for k in range(2)] == [replies[i][-1] for i in batch.rows]
    assert torch.equal(seen.bool(), mask)


def test_layout_trims_to_a_multiple_of_8_above_the_longest_row():
    batches = lay_out([[1]] * 4, [[5] * n for n in (1, 9, 2, 8)], 2, 0, torch.device("cpu"))
    assert [batch.ids.shape[1] for batch in batches] == [8, 16]


def test_minibatches_shuffle_by_their_generator():
    batches = lay_out([[1]] * 8, [[5] * (i + 1) for i in range(8)], 1, 0, torch.device("cpu"))
    orders = [[b.rows[0] for part in minibatches(batches, 2, stream(s, "m", 1)) for b in part] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(8))


def test_prompt_order_is_a_permutation_a_pass():
    order = PromptOrder(rows=10, batch_size=4, seed=3)
    first = order.batch(1) + order.batch(2)
    assert len(set(first)) == 8
    assert order.batch(1) == PromptOrder(10, 4, 3).batch(1)
    assert order.batch(3) != order.batch(1)
    with pytest.raises(ValueError, match=r"len\(train_dataset\)=3: fewer prompts than one batch of 4"):
        PromptOrder(3, 4, 0)


def test_tokenizer_padding_side_does_not_matter(workshop, make_trainer, monkeypatch):
    logs = []
    for side in ("left", "right"):
        monkeypatch.setattr(workshop.tokenizer, "padding_side", side)
        trainer = make_trainer(max_steps=1)
        trainer.train()
        logs.append(trainer.state.log_history[0]["objective/scores"])
    assert logs[0] == logs[1]


REFUSED = {
    r"pad_token=</s>: is EOS too \(id 2\)": ({}, {"pad_token": "</s>"}),
    "pad_token=None: no pad token\n  fix: .*add_special_tokens": ({}, {"pad_token": None}),
    "kl_estimator=k3: in the reward its gradient is biased .*\n  fix: kl_estimator=k1": ({"kl_estimator": "k3"}, {}),
    "fp16=True: needs loss scaling, .*; use bf16\n  fix: fp16=false": ({"fp16": True, "bf16": None}, {}),
    "temperature=0.0: must be above 0": ({"temperature": 0.0}, {}),
    "num_mini_batches=0: must be above 0": ({"num_mini_batches": 0}, {}),
    "kl_horizon=-1: must be above 0": ({"kl_horizon": -1}, {}),
    "num_mini_batches=3: does not divide the batch of 8 prompts\n  allowed: 1, 2, 4, 8\n  fix: num_mini_batches=2": (
        {"num_mini_batches": 3},
        {},
    ),
    "missing_eos_penalty=-1.0: must not be negative: it is subtracted\n  fix: missing_eos_penalty=1.0": (
        {"missing_eos_penalty": -1.0},
        {},
    ),
    "missing_eos_penalty=1.0: no id ends a reply, .*\n  fix: missing_eos_penalty=null": (
        {"missing_eos_penalty": 1.0, "eos_token_ids": []},
        {},
    ),
    "total_episodes=7: is less than one batch of 8 prompts\n  fix: total_episodes=8": ({"total_episodes": 7}, {}),
    "kwargs.use_reentrant=True: gives adapters no gradient\n  fix: activation_checkpointing_kwargs.use_reentrant=false": (
        {"activation_checkpointing_kwargs": {"use_reentrant": True}},
        {},
    ),
    r"response_length=126: with the 9 tokens of train_dataset\[\d+\] this exceeds the model's context of 128\n  fix: response_length=119": (
        {"response_length": 126},
        {},
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_work_is_refused(workshop, make_trainer, message, monkeypatch):
    options, tokens = REFUSED[message]
    for name, value in tokens.items():
        monkeypatch.setattr(
            workshop,
            "tokenizer",
            type(workshop.tokenizer)(
                tokenizer_object=workshop.tokenizer.backend_tokenizer,
                eos_token="</s>",
                **({name: value} if value else {}),
            ),
        )
    with pytest.raises(ValueError, match=message):
        make_trainer(workshop.roles() if not tokens else roles_without_check(workshop), **options)


def roles_without_check(workshop):
    from types import SimpleNamespace

    return SimpleNamespace(
        policy=workshop.load(), reference=None, reward=workshop.load_reward(), value=workshop.load_reward()
    )


def test_bad_prompts_are_refused(make_trainer):
    for rows, message in (
        ([[]] * 8, r"train_dataset\[0\]=\[\]: the prompt is empty"),
        ([[5, -2]] * 8, r"\[0\]=-2: the token id is outside the model's vocabulary of 96"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(dataset=Dataset.from_dict({"input_ids": rows}))
    with pytest.raises(ValueError, match=r"train_dataset.column_names=\['text'\]: there is no column input_ids"):
        make_trainer(dataset=Dataset.from_dict({"text": ["a"] * 8}))


def test_eos_first_rows_stay_finite(workshop, make_trainer):
    roles = workshop.roles()
    trainer = make_trainer(roles, max_steps=1, eos_token_ids=list(range(2, 96)), missing_eos_penalty=1.0)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["length/mean"] == 1.0 and log["length/eos_rate"] == 1.0
    assert all(torch.isfinite(torch.tensor(v)) for v in log.values())


def test_reply_without_eos_gets_the_penalty_as_its_score(make_trainer):
    trainer = make_trainer(max_steps=1, missing_eos_penalty=2.5, eos_token_ids=[95], response_length=2)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["length/eos_rate"] == 0.0 and log["objective/scores"] == -2.5 and log["reward/mean"] != -2.5


def test_a_dense_base_samples_the_same_and_leaves_no_trace(workshop, make_trainer, monkeypatch):
    """The copy holds what 4-bit layers dequantize to, so on the CPU the replies are the same, without dequantizing."""
    import bitsandbytes

    quantized, dense = (
        make_trainer(workshop.roles(quantized=True, dtype=torch.bfloat16), rollout_base=kind)
        for kind in ("quantized", "dense")
    )
    asked = [[1, 9, 8, 7], [1, 5]]
    wanted = quantized.loop.sample(asked, 1)
    calls = []
    multiply = bitsandbytes.matmul_4bit
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda *a, **k: calls.append(1) or multiply(*a, **k))
    found = dense.loop.sample(asked, 1)
    assert not calls and found.tokens == wanted.tokens and found.logprobs == wanted.logprobs
    assert quantized.loop.sample(asked, 1).tokens == wanted.tokens and calls
    assert not any("forward" in vars(m) for m in dense.policy.model.modules() if hasattr(m, "compute_dtype"))
