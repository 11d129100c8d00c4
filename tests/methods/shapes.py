"""Tiny models of six architectures, each with weights of its own in every layer."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
LLAMA = SIZE | {"intermediate_size": 48, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": LLAMA | {"head_dim": 8},
    "gemma3_text": LLAMA
    | {"head_dim": 8, "sliding_window": 48, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": LLAMA | {"sliding_window": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64},
    "gpt_neox": SIZE | {"intermediate_size": 48},
}


def model_of(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SHAPES[kind], **more, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    model.config._name_or_path = kind
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
