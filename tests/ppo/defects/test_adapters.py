"""Adapters and 4-bit bases: who is trained, and from where the reference starts."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from rlhf.models.layers import plain_4bit_kernels
from tests.ppo.defects.helpers import defect, equal, logged, refusal, tiny_policy, tiny_scorer, weights


def lora(task: str) -> Any:
    return LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type=task)


def in_4bit(model: Any, auto: Any, folder: Any) -> Any:
    model.save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    quantized = auto.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    plain_4bit_kernels(quantized)
    return quantized


@defect("ppo_trainer.py:441-442 and 577-588, TRL#1340: the reference is the base below the SFT adapter")
def test_the_reference_is_the_sft_adapter(contender):
    policy = get_peft_model(tiny_policy(), lora("CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    trainer = contender.build(policy=policy)
    trainer.train()
    assert logged(trainer, "objective/kl") == pytest.approx([0.0], abs=1e-4)


@defect("ppo_trainer.py:584-588: switching to the reference's adapter and back makes all of the policy's trainable")
def test_what_is_frozen_in_an_adapter_stays_frozen(contender):
    policy = get_peft_model(tiny_policy(), lora("CAUSAL_LM"))
    policy.add_adapter("sft", lora("CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    trainer = contender.build(policy=policy, model_adapter_name="default", ref_adapter_name="sft")
    trainer.train()
    learns = {
        name.split(".")[-3:-1] == ["lora_B", "default"] for name, p in policy.named_parameters() if p.requires_grad
    }
    assert learns == {True} and policy.active_adapter == "default"


@defect("ppo_trainer.py:354-357 and 439-448: a policy, a value and a reward on one base are three bases in memory")
def test_all_roles_share_one_base(contender, tmp_path):
    folders = {name: tmp_path / name for name in ("base", "sft", "reward")}
    tiny_policy().save_pretrained(folders["base"])
    for name, auto, task in (
        ("sft", AutoModelForCausalLM, "CAUSAL_LM"),
        ("reward", AutoModelForSequenceClassification, "SEQ_CLS"),
    ):
        get_peft_model(auto.from_pretrained(folders["base"]), lora(task)).save_pretrained(folders[name])
    trainer = contender.build(**contender.from_adapters(**folders))
    bases = set()

    def look(module, inputs):
        if isinstance(module, torch.nn.Embedding):
            bases.add(module.weight.data_ptr())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        trainer.train()
    finally:
        hook.remove()
    assert len(bases) == 1


@defect(
    "ppo_trainer.py:280 and experimental/utils.py:773: the backbone of a LoRA value is taken to be the classifier",
    raises=ValueError,
    match="Cannot handle batch sizes > 1",
)
def test_a_value_can_be_an_adapter(contender):
    value = get_peft_model(tiny_scorer(2, pad_token_id=None), lora("SEQ_CLS"))
    trainer = contender.build(value=value)
    before = weights(value)
    trainer.train()
    assert not equal(weights(value), before)


@defect(
    "ppo_trainer.py:431-433: a 4-bit policy with peft_config cannot take a step",
    raises=RuntimeError,
    match="same dtype",
)
def test_a_4bit_policy_trains_an_adapter(contender, tmp_path):
    policy = in_4bit(tiny_policy(), AutoModelForCausalLM, tmp_path / "base")
    trainer = contender.build(policy=policy, peft_config=lora("CAUSAL_LM"), bf16=True)
    trainer.train()
    trained = [p for n, p in policy.named_parameters() if "lora_B" in n and "reference" not in n]
    assert trained and all(bool(p.any()) for p in trained)


@defect(
    "ppo_trainer.py:444: of a 4-bit policy all is copied for the reference, and only norms and embeddings are trained"
)
def test_a_4bit_policy_without_an_adapter_is_refused(contender, tmp_path):
    policy = in_4bit(tiny_policy(), AutoModelForCausalLM, tmp_path / "base")
    assert "adapter" in refusal(lambda: contender.build(policy=policy))


@defect("ppo_trainer.py:431 and 494: of a 4-bit value only norms, embeddings and head are trained, silently")
def test_a_4bit_value_without_an_adapter_is_refused(contender, tmp_path):
    value = in_4bit(tiny_scorer(2), AutoModelForSequenceClassification, tmp_path / "base")
    assert "adapter" in refusal(lambda: contender.build(value=value))
