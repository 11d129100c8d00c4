"""Settings of adapters and quantization that cannot work are refused in one form, before weights are read."""

import pytest
import torch

from rlhf.errors import Refusal
from rlhf.models.adapters import lora_config, with_adapter
from rlhf.models.base import quantization_config


def test_settings_that_the_libraries_do_not_know_are_refused(stage_of):
    stage = stage_of("function:exact_match", **{"+quantization__args__bnb_4bit_quant_typ": "nf4"})
    with pytest.raises(Refusal, match=r"quantization.args.bnb_4bit_quant_typ=nf4: not a field.*bnb_4bit_quant_type"):
        quantization_config(stage)
    stage = stage_of("function:exact_match", **{"+adapter__args__layers_to_transform": "[0]"})
    with pytest.raises(Refusal, match=r"adapter.args=\{.*: refused by peft.LoraConfig: .*layers_to_transform"):
        lora_config(stage, "CAUSAL_LM")


def test_every_stage_holds_the_adapter_it_starts_from_against_its_base(workshop, stage_of):
    stage, base = stage_of("function:exact_match", model__path="somewhere/else"), torch.nn.Linear(2, 2)
    with pytest.raises(
        Refusal, match=r"method.start_from=\S+: trained on the base \S+, .* uses somewhere/else\n  fix: "
    ):
        with_adapter(stage, base, str(workshop.sft), "CAUSAL_LM")
