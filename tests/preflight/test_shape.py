"""Sizes of models: against their published parameter counts and PEFT's adapters, without any download."""

import json

import pytest

from rlhf.config import options
from rlhf.errors import ConfigError
from rlhf.preflight.memory import adapter_weights
from rlhf.preflight.sizes import FAMILIES, read_shape, shape_of

# parameters of the checkpoints, a shared embedding counted once: the README of EleutherAI/pythia, and the safetensors index of the rest
PUBLISHED = {
    "gemma3_1b": 999_885_952,
    "gpt2_large": 774_030_080,
    "llama3.1_8b": 8_030_261_248,
    "llama3.2_1b": 1_235_814_400,
    "llama_7b": 6_738_415_616,
    "mistral_7b": 7_241_732_096,
    "pythia_1b": 1_011_781_632,
    "pythia_2.8b": 2_775_208_960,
    "pythia_6.9b": 6_857_302_016,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2_0.5b_instruct": 494_032_768,
    "qwen3_0.6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "smollm2_1.7b": 1_711_376_384,
    "smollm2_135m": 134_515_008,
    "smollm2_135m_instruct": 134_515_008,
    "smollm2_360m": 361_821_120,
}
OWN = {"support", "support_scratch"}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 128}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


def test_every_model_has_its_published_number_of_parameters(compose_stage):
    """Within 0.2%: norms and biases are left out, and a wrong size in a YAML file is off by more."""
    assert set(options("model")) == set(PUBLISHED) | OWN
    for model, published in PUBLISHED.items():
        assert shape_of(compose_stage(f"model={model}")).parameters == pytest.approx(published, rel=0.002), model
    print(f"{len(PUBLISHED)} models have their published number of parameters")


@pytest.mark.parametrize("kind", FAMILIES)
def test_matrices_and_adapters_are_those_of_transformers_and_peft(compose_stage, kind):
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlhf.models.adapters import lora_config

    grouped = {"num_key_value_heads": 2, "head_dim": 32} if len(FAMILIES[kind].linears) == 7 else {}
    given = GPT2 if kind == "gpt2" else {"model_type": kind} | SMALL | grouped
    shape = read_shape(given, "model.shape")
    for names in ("all-linear", f"[{','.join(shape.family.linears[:2])}]"):
        stage = compose_stage(f"adapter.args.target_modules={names}", "adapter.args.r=4")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**given))
            matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and (".layers." in n or ".h." in n)]
            assert sum(p.numel() for p in matrices) == shape.matrices
            peft = get_peft_model(model, lora_config(stage, "CAUSAL_LM"))
        assert sum(p.numel() for n, p in peft.named_parameters() if ".lora_" in n) == adapter_weights(stage, shape)


def test_sizes_come_from_a_local_folder_or_from_the_stage_that_will_make_it(compose_stage, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]} | GPT2))
    shape = shape_of(compose_stage("model=qwen3_8b", f"model.path={tmp_path}"))
    assert (shape.hidden, shape.inner, shape.layers, shape.head) == (64, 256, 2, 0)
    shape = shape_of(compose_stage("recipes=support/dpo"))
    assert (shape.hidden, shape.layers, shape.vocabulary) == (192, 4, 1536)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.path=org/unknown"], "model.shape={model_type: llama"),
        (["model.path=org/unknown", "model.shape={model_type: lama}"], "did you mean llama"),
        (["model.path=org/unknown", "model.shape={model_type: llama, hidden_size: 8}"], "lacks num_hidden_layers"),
        (["model=llama3.2_1b", "adapter.args.target_modules=[q_proj,w_proj]"], "a list of q_proj, k_proj"),
    ],
)
def test_unknown_sizes_and_layers_are_refused_with_what_is_known(compose_stage, overrides, message):
    stage = compose_stage(*overrides)
    with pytest.raises(ConfigError) as caught:
        adapter_weights(stage, shape_of(stage))
    assert message in str(caught.value)
