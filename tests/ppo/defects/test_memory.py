"""Memory and work that stock spends on what nobody reads."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.ppo.defects.helpers import EOS, VOCABULARY, defect, tiny_policy, tiny_scorer


class WidestTable(TorchDispatchMode):
    """The most rows that any tensor over the vocabulary has."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[-1] == VOCABULARY:
                self.rows = max(self.rows, leaf.numel() // VOCABULARY)
        return result


@defect("ppo_trainer.py:108-110 and 138: the scores of a whole rollout over the vocabulary are kept")
def test_a_rollout_keeps_no_logits(contender):
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "total_episodes": 8}
    trainer = contender.build(response_length=40, **contender.stops([]), **sizes)
    with WidestTable() as table:
        trainer.train()
    assert table.rows < 8 * 40


@defect("ppo_trainer.py:821: logits of the prompt's tokens are computed and thrown away")
def test_no_logits_for_prompts(contender):
    policy, rows = tiny_policy(), []
    trainer = contender.build(policy=policy, prompts=[[1, *[5] * 20, i] for i in range(4, 12)], **contender.stops([]))

    def count(module, inputs, logits):
        if torch.is_grad_enabled():
            rows.append(logits.numel() // VOCABULARY)

    policy.lm_head.register_forward_hook(count)
    trainer.train()
    assert max(rows) == 2 * 6  # the reply tokens of a micro-batch


@defect("ppo_trainer.py:219, experimental/utils.py:780: every layer's hidden states are kept to read the last")
def test_no_hidden_states_of_every_layer(contender):
    value, kept = tiny_scorer(2), []
    trainer = contender.build(value=value)
    value.model.register_forward_hook(lambda module, inputs, output: kept.append(output.hidden_states))
    trainer.train()
    assert kept and not any(kept)


@defect("ppo_trainer.py:214-220: training passes fill a key-value cache")
def test_no_cache_in_training(contender):
    policy, caches = tiny_policy(), []
    trainer = contender.build(policy=policy)

    def look(module, inputs, output):
        if torch.is_grad_enabled():
            caches.append(output.get("cache", output.get("past_key_values")))

    policy.model.register_forward_hook(look)
    trainer.train()
    assert caches and not any(cache is not None for cache in caches)


@defect("ppo_trainer.py:291-294 and 847-848: the graphs of policy and value are in memory together")
def test_one_graph_at_a_time(contender):
    policy, value, alive = tiny_policy(), tiny_scorer(2), [0]
    trainer = contender.build(policy=policy, value=value)
    for model in (policy, value):

        def begin(*_):
            alive.append(alive[-1] + torch.is_grad_enabled())

        model.model.norm.register_forward_hook(begin)
        model.model.norm.register_full_backward_hook(lambda *_: alive.append(alive[-1] - 1))
    trainer.train()
    assert max(alive) == 1


@defect("ppo_trainer.py:125-134: rows that ended are decoded on until the longest has")
def test_rows_that_ended_are_not_decoded(contender):
    policy, rows = tiny_policy(prefer={EOS: 2.0}), []
    trainer = contender.build(policy=policy, response_length=12, stop_token="eos")

    def count(module, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            rows.append(len(kwargs["input_ids"]))

    policy.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    assert min(rows) < max(rows)


@defect("ppo_trainer.py:604-949: activation checkpointing, PPOConfig's default, is never switched on")
def test_activation_checkpointing_recomputes(contender):
    def passes(checkpointing):
        policy, calls = tiny_policy(), []
        trainer = contender.build(policy=policy, activation_checkpointing=checkpointing)
        policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        trainer.train()
        return len(calls)

    assert passes(True) > passes(False)
