"""Optimizer steps: how many, from which gradients, on finite numbers, in an order that the seed decides."""

import math
import signal
from contextlib import suppress

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.ppo.defects.helpers import (
    EOS,
    PROMPTS,
    defect,
    equal,
    finite,
    logged,
    record_steps,
    refusal,
    tiny_policy,
    tiny_scorer,
    weights,
)


def ragged(prompt):
    """Replies of 2 and of 6 tokens."""
    return [5 + prompt[1] % 7] * (1 if prompt[1] % 2 else 5) + [EOS]


@defect("ppo_trainer.py:463 and 805-810, TRL#2531: minibatches reshuffle the batch but make no optimizer steps")
def test_every_minibatch_makes_a_step(contender):
    trainer = contender.build(
        per_device_train_batch_size=1, gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=2
    )
    steps = record_steps(trainer)
    trainer.train()
    assert len(steps) == 2 * 4


@defect("ppo_trainer.py:631 and 858-868, TRL#7041: statistics average slots that no minibatch fills")
def test_ratio_of_an_untrained_policy_is_one(contender):
    trainer = contender.build(num_mini_batches=2, learning_rate=0.0)
    trainer.train()
    assert logged(trainer, "val/ratio") == pytest.approx([1.0], abs=1e-3)


@defect("ppo_trainer.py:615-619 and 810: accelerate steps on every micro-batch of the last batch of a pass")
def test_last_batch_of_a_pass_accumulates_gradients(contender):
    trainer = contender.build(prompts=PROMPTS[:4])
    steps = record_steps(trainer)
    trainer.train()
    assert len(steps) == 1


@defect("ppo_trainer.py:1004-1005: breaking out of the eval loader leaves accelerate at the end of it, so all steps")
def test_looking_at_samples_changes_no_steps(contender):
    held_out = Dataset.from_dict({"input_ids": PROMPTS[:8]})
    look = {"eval_dataset": held_out, "eval_strategy": "steps", "eval_steps": 1, "num_sample_generations": 2}
    trainer = contender.build(total_episodes=8, per_device_eval_batch_size=8, **look)
    steps = record_steps(trainer)
    trainer.train()
    assert len(steps) == 2


@defect("ppo_trainer.py:848-850: max_grad_norm is accepted and ignored")
def test_gradients_are_clipped(contender):
    policy = tiny_policy()
    trainer = contender.build(policy=policy, max_grad_norm=1e-3)
    norms = record_steps(trainer, lambda: float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()])))
    trainer.train()
    assert max(norms) <= 1e-3 * 1.01


@defect("ppo_trainer.py:837 and 846: a mean of micro-batch means weighs a token by its neighbours' lengths")
def test_gradient_does_not_depend_on_the_micro_batch_split(contender):
    def gradient(rows):
        policy = tiny_policy()
        split = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 4 // rows}
        trainer = contender.build(policy=policy, stop_token_id=EOS, **split)
        contender.force(trainer, ragged)
        steps = record_steps(trainer, lambda: torch.cat([p.grad.flatten() for p in policy.parameters()]))
        trainer.train()
        return steps[0]

    assert torch.allclose(gradient(4), gradient(1), rtol=1e-3, atol=1e-5)


@defect("ppo_trainer.py:538 and 615-617: an empty loader is iterated forever", raises=TimeoutError, match="hangs")
def test_fewer_prompts_than_a_batch_are_refused(contender):
    def give_up(*_):
        raise TimeoutError("hangs")

    with suppress(ValueError):
        trainer = contender.build(prompts=PROMPTS[:3])
        before = signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, 1)
        try:
            trainer.train()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        raise AssertionError("trained on a batch that there is not")


@defect("ppo_trainer.py:803: the shuffle draws from NumPy's global state, which nothing seeds")
def test_the_seed_decides_the_run(contender):
    def trained(noise):
        policy = tiny_policy()
        trainer = contender.build(
            policy=policy, gradient_accumulation_steps=4, total_episodes=8, num_ppo_epochs=2, stop_token_id=EOS
        )
        contender.force(trainer, ragged)
        np.random.seed(noise)
        trainer.train()
        return weights(policy)

    assert equal(trained(1), trained(2))


@defect("ppo_trainer.py:259: the variance of a single token divides by zero, and the weights become NaN")
def test_one_token_is_enough_to_train_on(contender):
    policy = tiny_policy()
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "response_length": 1}
    contender.build(policy=policy, total_episodes=1, **one).train()
    assert finite(policy)


@defect("ppo_trainer.py:904: val/ratio_var is the variance of one number, NaN, with one step an update")
def test_metrics_of_one_step_are_finite(contender):
    trainer = contender.build(per_device_train_batch_size=4, gradient_accumulation_steps=1)
    trainer.train()
    assert not [k for k, v in trainer.state.log_history[0].items() if not math.isfinite(v)]


@defect("ppo_trainer.py:912: with warm-up the learning rate of the first update is 0, a rollout for nothing")
def test_first_update_of_a_warmup_learns(contender):
    trainer = contender.build(warmup_steps=1, total_episodes=8)
    rates = record_steps(trainer, lambda: trainer.optimizer.param_groups[0]["lr"])
    trainer.train()
    assert rates[0] > 0


@defect("ppo_trainer.py:733-779 and 848: a NaN score reaches the weights")
def test_nan_score_does_not_reach_the_weights(contender):
    policy = tiny_policy()
    trainer = contender.build(policy=policy, reward=tiny_scorer(weight=float("nan")))
    with suppress(FloatingPointError):
        trainer.train()
    assert finite(policy)


@defect(
    "ppo_trainer.py:472 and 783: asserts the size of a minibatch, though it whitens the whole batch",
    match="insufficient for whitening",
)
def test_rewards_can_be_whitened_with_small_minibatches(contender):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_mini_batches": 4}
    contender.build(whiten_rewards=True, total_episodes=16, **sizes).train()


@defect("ppo_config.py:188-214, ppo_trainer.py:462-478: batch_size looks settable and is overwritten")
def test_a_batch_size_that_contradicts_is_refused(contender):
    assert "batch_size" in refusal(lambda: contender.build(batch_size=64))
