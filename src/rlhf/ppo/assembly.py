"""What a trainer's constructor was given becomes four roles."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from rlhf.errors import Refusal
from rlhf.models.adapters import copy_adapter
from rlhf.models.attention import attend_in_fp32
from rlhf.models.layers import keep_inputs_once
from rlhf.models.roles import Role, disable_dropout
from rlhf.models.shared import scalar_role, unwrap

Names = tuple[str | None, str | None]


def assemble(
    model: Any,
    ref_model: Any,
    reward_model: Any,
    value_model: Any,
    peft_config: Any,
    device: torch.device,
    vocabulary: int,
    adapters: Names = (None, None),
) -> tuple[Role, Role, list[Any], Role]:
    """Policy, reference, rewards and value; `reward_model` is one or several, and a scorer, which is no model, stays.

    `peft_config` is the policy's, as in TRL; a value is an adapter if it comes as a PeftModel or a Role. `adapters` are
    the names of policy and reference (`model_adapter_name`, `ref_adapter_name`) on a PeftModel that has both.
    Raises Refusal when two roles would share what one of them trains, a trained role has nothing to train or is
    quantized without an adapter, or a role has no embedding for some of the tokenizer's `vocabulary` ids.
    """
    given = list(reward_model) if isinstance(reward_model, Sequence) else [reward_model]
    if not given:
        raise Refusal("reward_model", given, "nobody scores the replies", fix="at least one reward model or scorer")
    for key, one, trained in (("ref_model", ref_model, model), *(("value_model", value_model, r) for r in given)):
        if one is trained:
            why = "is the policy or a reward model too, and one of the two trains: two roles need two objects"
            raise Refusal(key, type(one).__name__, why, fix=f"{key}=copy.deepcopy({key})")
    if isinstance(model, Role) != isinstance(ref_model, Role):
        why = f"model is a {type(model).__name__}; both are a Role or neither is"
        raise Refusal("ref_model", type(ref_model).__name__, why, fix="shared_roles, which makes the two together")
    if isinstance(model, Role) and any(adapters):
        key = "ref_adapter_name" if adapters[1] else "model_adapter_name"
        why = "chooses among the adapters of a PeftModel, and model is a Role"
        raise Refusal(key, adapters[1] or adapters[0], why, fix=f"{key}=null")
    policy, reference = (
        (model, ref_model) if isinstance(model, Role) else policy_roles(model, ref_model, peft_config, adapters)
    )
    value = value_model if isinstance(value_model, Role) else scalar_role("value", value_model, trained=True)
    rewards = [scalar_role("reward", r, trained=False) if isinstance(r, torch.nn.Module) else r for r in given]
    roles = [role for role in (policy, reference, *rewards, value) if isinstance(role, Role)]
    for role in roles:
        check(role, min(vocabulary, policy.embeddings))
    for role in roles:
        prepare(role, device)
    for role in (policy, reference):
        role.check_lm_head()
    return policy, reference, rewards, value


def check(role: Role, ids: int) -> None:
    """Raises Refusal for a role without an embedding for each of `ids` token ids, or with nothing to train."""
    if role.embeddings < ids:
        fix = "a model trained with the policy's tokenizer, or a scorer of text"
        raise Refusal(f"{role.name} embeddings", role.embeddings, f"the vocabulary has {ids} ids", fix=fix)
    if role.trained and role.peft is None and getattr(role.model, "is_quantized", False):
        why = "is quantized and has no adapter, so only its norms, embeddings and head could learn"
        fix = "get_peft_model(model, LoraConfig(...)), or shared_roles"
        raise Refusal(f"{role.name} model", type(role.model).__name__, why, fix=fix)
    if role.trained and not role.trainable():
        fix = "an adapter, or requires_grad_(True)"
        raise Refusal(f"{role.name} model", type(role.model).__name__, "has no trainable parameter", fix=fix)


def prepare(role: Role, device: torch.device) -> None:
    """Switches dropout off, makes LoRA layers lean, moves a plain model to the device, freezes what is not trained."""
    disable_dropout(role.model)
    role.model.eval()
    if role.peft is not None:
        keep_inputs_once(role.peft)
    elif not getattr(role.model, "is_quantized", False):
        role.model.to(device)
    attend_in_fp32(role.model)
    for _, parameter in () if role.trained else role.named_parameters():
        parameter.requires_grad_(False)


def policy_roles(
    model: Any, reference: Any = None, peft_config: Any = None, adapters: Names = (None, None)
) -> tuple[Role, Role]:
    """Policy and reference from what stock TRL users hand over.

    A PEFT policy without a reference gets a frozen copy of its own adapter as the reference: the point where training
    starts, and not the base below it (TRL#1340, TRL#3194), unless another of its adapters is named. A plain model
    without one is copied whole.
    """
    if peft_config is not None:
        if isinstance(model, PeftModel):
            why = "model is a PeftModel already, which it would wrap a second time"
            raise Refusal("peft_config", type(peft_config).__name__, why, fix="peft_config=None")
        model = get_peft_model(model, peft_config)
    peft, base, active = unwrap(model)
    known = [] if peft is None else list(peft.peft_config)
    for key, name in zip(("model_adapter_name", "ref_adapter_name"), adapters, strict=True):
        if name is not None and name not in known:
            raise Refusal(key, name, "is not an adapter of model", allowed=known or ["none"], fix=f"{key}=null")
    adapter = adapters[0] or active
    if adapters[1] is not None and (reference is not None or adapters[1] == adapter):
        why = "there is a ref_model too" if reference is not None else "that is the policy's adapter, which changes"
        raise Refusal("ref_adapter_name", adapters[1], why, fix="ref_adapter_name=null")
    policy = Role("policy", base, peft=peft, adapter=adapter, trained=True)
    if reference is not None:
        peft, base, active = unwrap(reference)
        return policy, Role("reference", base, peft=peft, adapter=active)
    if adapters[1] is not None:
        return policy, Role("reference", base, peft=peft, adapter=adapters[1])
    if peft is None:
        return policy, Role("reference", copy.deepcopy(base).requires_grad_(False))
    copy_adapter(peft, adapter, "reference")
    return policy, Role("reference", base, peft=peft, adapter="reference")
