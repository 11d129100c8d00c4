"""Where stock TRL is right, ours is equal: fp32, whole models, replies of fixed length, one minibatch, no clipping of
gradients.

Stock's rollout is replaced by the same replies that ours gets, since the two draw random numbers differently; and ours
does not suppress pad here, since stock does not.
"""

import copy

import pytest
import torch
from datasets import Dataset

from rlhf.generation.logprobs import Forward
from rlhf.generation.sampling import stream
from tests.helpers import needs_stock
from tests.ppo.defects.helpers import Ours, Stock
from tests.workshop import QUIET

UPDATES, REPLY, TEMPERATURE = 5, 9, 0.7
COMPARED = ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "policy/approxkl_avg")


def reply_to(prompt, update):
    """The reply both sides get: random ids without pad and EOS, a function of the prompt and the update."""
    generator = stream(sum(prompt), "stock", update)
    return torch.randint(4, 96, (REPLY,), generator=generator).tolist()


def options(folder):
    return QUIET | {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 1,
        "num_ppo_epochs": 3,
        "total_episodes": 4 * UPDATES,
        "response_length": REPLY,
        "temperature": TEMPERATURE,
        "learning_rate": 3e-4,
        "adam_epsilon": 1e-5,
        "kl_coef": 0.1,
        "max_grad_norm": 0.0,
        "num_sample_generations": 0,
    }


@needs_stock
@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_five_updates_equal_those_of_stock(workshop, tmp_path, monkeypatch, whiten_rewards):
    rows = [[1, 9, 8, 7, 6], [1, 5], [1, 30, 31], [1, 40, 41, 42]] * (2 if whiten_rewards else 1)
    rows = [[*row, 10 + i] for i, row in enumerate(rows)]
    dataset = Dataset.from_dict({"input_ids": rows})
    common = options(tmp_path) | {"whiten_rewards": whiten_rewards}
    common |= {"per_device_train_batch_size": len(rows), "total_episodes": len(rows) * UPDATES}
    monkeypatch.setattr(workshop.tokenizer, "padding_side", "left")
    start = workshop.load()
    drifted = copy.deepcopy(start)  # a reference apart from the policy, so that the KL is not 0
    with torch.no_grad():
        for parameter in drifted.parameters():
            parameter.mul_(1.05)

    def build(trainer, config, **more):
        policy, value = copy.deepcopy(start), workshop.load_reward()
        made = trainer(
            config(**common, **more),
            workshop.tokenizer,
            policy,
            copy.deepcopy(drifted),
            workshop.load_reward(),
            dataset,
            value,
            eval_dataset=dataset,
        )
        return made, policy, value

    def reply_in(trainer):
        return lambda prompt: reply_to(prompt, trainer.state.global_step)

    theirs = Stock(tmp_path, monkeypatch)
    stock, stock_policy, stock_value = build(theirs.trainer, theirs.config)
    theirs.force(stock, reply_in(stock))
    stock.train()

    ours, policy, value = build(Ours.trainer, Ours.config, eos_token_ids=[])
    ours.loop.forward = Forward(TEMPERATURE, (), 7, ours.autocast)
    Ours(tmp_path, monkeypatch).force(ours, reply_in(ours))
    ours.train()

    for key in COMPARED:
        theirs = [row[key] for row in stock.state.log_history if key in row]
        mine = [row[key] for row in ours.state.log_history if key in row]
        assert len(mine) == UPDATES
        assert mine == pytest.approx(theirs, abs=1e-4), key
    for mine, theirs in ((policy, stock_policy), (value, stock_value)):
        moved = 0.0
        for (name, a), b, c in zip(mine.named_parameters(), theirs.parameters(), start.parameters(), strict=False):
            assert torch.allclose(a, b, atol=1e-5), name
            moved = max(moved, float((a - c).abs().max()) if a.shape == c.shape else 0.0)
        assert moved > 1e-3
