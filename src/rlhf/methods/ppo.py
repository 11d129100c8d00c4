"""Proximal policy optimization: sample replies, score them, make the better ones likelier, pay for leaving the SFT model.

maximize E[r(prompt, reply)] - kl_coef * KL(policy || reference), by clipped policy-gradient steps on advantages from a learned
value function. Four roles share one base: the policy starts from the SFT adapter, the reference is a frozen copy of it, or
`method.reference`, the reward is the adapter and head of the reward stage, and the value starts from a copy of them. With a text
classifier as the reward the value starts from the SFT model and a new head. Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155.
"""

from pathlib import Path
from typing import Any

import torch

from rlhf.config import Stage
from rlhf.data.prepare import Prepared
from rlhf.errors import Refusal
from rlhf.methods.arguments import training_arguments
from rlhf.models.adapters import lora_config, read_adapter_config
from rlhf.models.base import load_base
from rlhf.models.shared import shared_roles
from rlhf.ppo.config import check_args, long_name
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.named import load_scorer, named_rewards

ARGS = "method.args."


def build(stage: Stage, tokenizer: Any, data: Prepared) -> PPOTrainer:
    """A trainer of the policy and value adapters on one shared base, or of whole models with adapter=none.

    What the arguments, adapter configs and tokenizers tell is refused before the base is loaded; what only weights tell, after.
    """
    args = training_arguments(stage, data.eval is not None)
    start, apart = stage.method.start_from, stage.method.reference
    try:
        check_args(args, tokenizer, ARGS)
        if start and stage.adapter.name != "none":
            read_adapter_config(Path(start), stage.model.path, "method.start_from")
        named = named_rewards(stage, tokenizer, data.train)
        if stage.adapter.name == "none":
            policy, reference = (load_base(stage, tokenizer, path=path) for path in (start, apart or start))
            own = next((reward.source for reward in named if reward.kind == "ids"), None)
            value = load_base(stage, tokenizer, path=own or start, reward=True)
            if own is None:
                torch.nn.init.zeros_(value.score.weight)
            adapters = iter(())
        else:
            lora = None if start else lora_config(stage, "CAUSAL_LM")
            base = load_base(stage, tokenizer)
            folders = [Path(reward.source) for reward in named if reward.kind == "adapter"]
            away = Path(apart) if apart else None
            roles = shared_roles(base, tokenizer, Path(start) if start else None, folders, lora, reference_start=away)
            policy, reference, value = roles.policy, roles.reference, roles.value
            adapters = iter(roles.reward if isinstance(roles.reward, list) else [roles.reward])
        rewards = [
            next(adapters) if reward.kind == "adapter" else load_scorer(reward, stage, tokenizer) for reward in named
        ]
        return PPOTrainer(args, tokenizer, policy, reference, rewards, data.train, value, eval_dataset=data.eval)
    except Refusal as error:
        raise long_name(error, args, ARGS) from error
