"""Finished policies on one base: what chat, evaluation and reports load, each an adapter beside the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf import record
from rlhf.config import Stage, read_stage
from rlhf.errors import ConfigError, nearest
from rlhf.models.load import load_base, load_lora
from rlhf.ppo.roles import Role, disable_dropout
from rlhf.ppo.scoring import RoleScorer
from rlhf.ppo.shared import load_adapter, read_adapter_config, reward_head


def load_roles(
    stage: Stage, tokenizer: Any, folders: Mapping[str, Path | None], reward: Path | None = None
) -> dict[str, Role]:
    """Roles by name from the folders that stages left; None stands for the bare base. `reward` adds a role of that name.

    Adapters share one base; with adapter=none each folder is a model of its own.
    """
    if stage.adapter.name == "none":
        roles = {}
        for name, folder in folders.items():
            roles[name] = Role(name, load_base(stage, tokenizer, path=str(folder) if folder else None).eval())
        if reward is not None:
            from rlhf.ppo.assembly import scalar_role

            roles["reward"] = scalar_role(
                "reward", load_base(stage, tokenizer, path=str(reward), reward=True).eval(), trained=False
            )
        return roles
    from peft import PeftModelForCausalLM

    base, peft = load_base(stage, tokenizer), None
    adapters = {name: folder for name, folder in folders.items() if folder is not None}
    if reward is not None:
        adapters["reward"] = reward
    heads: dict[str, Any] = {}
    for name, folder in adapters.items():
        config = read_adapter_config(folder, base.config._name_or_path, name)
        config.task_type = "CAUSAL_LM"
        if peft is None:
            peft = PeftModelForCausalLM(base, config, adapter_name=name)
        else:
            peft.add_adapter(name, config)
        if name == "reward":
            heads[name] = load_adapter(peft, name, folder)
        else:
            load_lora(peft, folder, name)
    base.eval().requires_grad_(False)
    disable_dropout(base)
    roles = {}
    for name, folder in (dict(folders) | ({"reward": reward} if reward else {})).items():
        head = None
        if name in heads:
            head = reward_head(heads[name], base, f"reward = {folder}")
        roles[name] = Role(name, base, peft=peft, adapter=name if folder else None, head=head)
    return roles


def scorer(stage: Stage, tokenizer: Any, role: Role) -> RoleScorer:
    """The score of `prompt ids + reply ids` under a reward role, as PPO computes it."""
    return RoleScorer(role, tokenizer.pad_token_id, stage.evaluation.batch_size)


def finished_stage(folder: Path) -> Stage:
    """The configuration of a run that left weights.

    Raises:
        ConfigError: there is no such run, it has not finished, or it trained a reward model, which does not talk.
    """
    run = record.read_run(folder)
    if not run:
        runs = sorted(
            path.parent.relative_to(folder.parent.parent).as_posix()
            for path in folder.parent.parent.glob("*/*/run.json")
        )
        raise ConfigError(
            f"{folder} is not a run{nearest(f'{folder.parent.name}/{folder.name}', runs)}\n"
            f"  runs: {', '.join(runs) or 'none; make demo makes some'}"
        )
    if run.get("status") != "finished":
        raise ConfigError(
            f"{folder} has not finished (status: {run.get('status')})\n  fix: start it again with its command: {' '.join(run['command'])}"
        )
    stage = read_stage(folder)
    if stage.method.name == "reward":
        raise ConfigError(
            f"{folder} is a reward model: it scores replies and writes none\n  fix: a run of sft, dpo or ppo"
        )
    return stage
