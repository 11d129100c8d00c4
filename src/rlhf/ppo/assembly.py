"""What a trainer's constructor was given becomes four roles."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from rlhf.models.adapters import copy_adapter
from rlhf.models.layers import attend_in_fp32, keep_inputs_once
from rlhf.models.roles import Role, disable_dropout
from rlhf.models.shared import scalar_role, unwrap


def assemble(
    model: Any,
    ref_model: Any,
    reward_model: Any,
    value_model: Any,
    peft_config: Any,
    device: torch.device,
    vocabulary: int,
    adapters: tuple[str | None, str | None] = (None, None),
) -> tuple[Role, Role, list[Any], Role]:
    """Policy, reference, rewards and value; `reward_model` is one or several, and what is no model (a scorer) is handed
    through.

    Wraps what is not a Role yet, switches dropout off, makes LoRA layers lean, moves plain models to the device and freezes
    what is not trained. `peft_config` is the policy's, as in TRL; a value is an adapter if it comes as a PeftModel or a Role.
    `adapters` are the names of policy and reference (`model_adapter_name`, `ref_adapter_name`) on a PeftModel that has both.
    Raises ValueError when two roles would share what one of them trains, a trained role has nothing to train or is
    quantized without an adapter, or a role has no embedding for some of the tokenizer's `vocabulary` ids.
    """
    given = list(reward_model) if isinstance(reward_model, Sequence) else [reward_model]
    if model is ref_model or any(reward is value_model for reward in given):
        raise ValueError(
            "model and ref_model, reward_model and value_model: two roles need two objects, one of them trains"
        )
    if isinstance(model, Role) != isinstance(ref_model, Role):
        raise ValueError("model and ref_model must both be a Role or both be models; shared_roles makes them together")
    if isinstance(model, Role) and any(adapters):
        raise ValueError(
            "model_adapter_name and ref_adapter_name choose among the adapters of a PeftModel, not of a Role"
        )
    policy, reference = (
        (model, ref_model) if isinstance(model, Role) else policy_roles(model, ref_model, peft_config, adapters)
    )
    value = value_model if isinstance(value_model, Role) else scalar_role("value", value_model, trained=True)
    rewards = [scalar_role("reward", r, trained=False) if isinstance(r, torch.nn.Module) else r for r in given]
    if not rewards:
        raise ValueError("reward_model = []: nobody scores the replies; give at least one")
    ids = min(vocabulary, policy.embeddings)
    for role in (policy, reference, *rewards, value):
        if not isinstance(role, Role):
            continue
        if role.embeddings < ids:
            raise ValueError(
                f"{role.name} model has {role.embeddings} embeddings for a vocabulary of {ids} ids; use one trained "
                "with the policy's tokenizer, or a scorer of text"
            )
        disable_dropout(role.model)
        role.model.eval()
        if role.peft is not None:
            keep_inputs_once(role.peft)
        if role.peft is None and not getattr(role.model, "is_quantized", False):
            role.model.to(device)
        attend_in_fp32(role.model)
        if not role.trained:
            for _, parameter in role.named_parameters():
                parameter.requires_grad_(False)
        elif role.peft is None and getattr(role.model, "is_quantized", False):
            raise ValueError(
                f"{role.name} model is quantized and has no adapter, so only its norms, embeddings and head could "
                "learn; wrap it with get_peft_model, or use shared_roles"
            )
        elif not role.trainable():
            raise ValueError(f"{role.name} has no trainable parameter; give it an adapter or unfreeze it")
    for role in (policy, reference):
        role.check_lm_head()
    return policy, reference, rewards, value


def policy_roles(
    model: Any, reference: Any = None, peft_config: Any = None, adapters: tuple[str | None, str | None] = (None, None)
) -> tuple[Role, Role]:
    """Policy and reference from what stock TRL users hand over.

    A PEFT policy without a reference gets a frozen copy of its own adapter as the reference: the point where training
    starts, and not the base below it (TRL#1340, TRL#3194), unless another of its adapters is named. A plain model
    without one is copied whole.
    """
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ValueError("model is a PeftModel already, peft_config would wrap it twice; give one of the two")
        model = get_peft_model(model, peft_config)
    peft, base = unwrap(model)
    known = [] if peft is None else list(peft.peft_config)
    for key, name in zip(("model_adapter_name", "ref_adapter_name"), adapters, strict=True):
        if name is not None and name not in known:
            raise ValueError(f"{key} = {name!r} is not an adapter of model (it has: {', '.join(known) or 'none'})")
    adapter = (adapters[0] or peft.active_adapter) if peft is not None else None
    if adapters[1] is not None and (reference is not None or adapters[1] == adapter):
        why = "there is a ref_model too" if reference is not None else "that is the policy's, which changes"
        raise ValueError(f"ref_adapter_name = {adapters[1]!r}, but {why}; leave ref_adapter_name out, or name another")
    policy = Role("policy", base, peft=peft, adapter=adapter, trained=True)
    if reference is not None:
        reference_peft, reference_base = unwrap(reference)
        reference_adapter = reference_peft.active_adapter if reference_peft is not None else None
        return policy, Role("reference", reference_base, peft=reference_peft, adapter=reference_adapter)
    if adapters[1] is not None:
        return policy, Role("reference", base, peft=peft, adapter=adapters[1])
    if peft is None:
        frozen = copy.deepcopy(base).requires_grad_(False)
        return policy, Role("reference", frozen)
    copy_adapter(peft, adapter, "reference")
    return policy, Role("reference", base, peft=peft, adapter="reference")
