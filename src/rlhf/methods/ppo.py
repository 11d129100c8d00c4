"""Proximal policy optimization: sample replies, score them, make the better ones likelier, pay for leaving the SFT model.

maximize E[r(prompt, reply)] - kl_coef * KL(policy || reference), by clipped policy-gradient steps on advantages from a learned
value function. Four roles share one base: the policy starts from the SFT adapter, the reference is a frozen copy of it, the reward
is the adapter and head of the reward stage, and the value starts from a copy of them. With a text classifier as the reward the
value starts from the SFT model and a new head. Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155.
"""

from pathlib import Path
from typing import Any

from rlhf.args import lora_config, training_arguments
from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.errors import ConfigError
from rlhf.models.classifier import classifier
from rlhf.models.load import load_base
from rlhf.ppo.shared import shared_roles
from rlhf.ppo.trainer import PPOTrainer


def build(stage: Stage, tokenizer: Any, data: Prepared) -> PPOTrainer:
    """A trainer of the policy and value adapters on one shared base, or of whole models with adapter=none."""
    args = training_arguments(stage, data.eval is not None)
    start, reward = stage.method.start_from, stage.method.reward_model
    try:
        if stage.adapter.name == "none":
            policy, reference = (load_base(stage, tokenizer, path=start) for _ in range(2))
            scorer = load_base(stage, tokenizer, path=reward, reward=True) if reward else classifier(stage, tokenizer)
            value = load_base(stage, tokenizer, path=reward or start, reward=True)
        else:
            assert reward is not None
            lora = None if start else lora_config(stage, "CAUSAL_LM")
            base = load_base(stage, tokenizer)
            roles = shared_roles(base, tokenizer, Path(start) if start else None, Path(reward), lora)
            policy, reference, scorer, value = roles.policy, roles.reference, roles.reward, roles.value
        return PPOTrainer(args, tokenizer, policy, reference, scorer, data.train, value, eval_dataset=data.eval)
    except ValueError as error:
        raise ConfigError(f"ppo can't start: {error}") from error
