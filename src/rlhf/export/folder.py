"""A model as a plain Hugging Face folder that transformers 4.57 and 5, PEFT, vLLM and TGI read from anywhere."""

import json
from pathlib import Path
from typing import Any

import torch

from rlhf.models.tokenizer import stops

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def write_folder(model: Any, tokenizer: Any, dtype: str, folder: Path) -> None:
    """Weights in safetensors, config.json, generation_config.json with every id that ends a reply, tokenizer and chat template.

    `model` ends up in `dtype`.
    """
    settle(model, tokenizer)
    model._weight_conversions = None  # so: the names of the family's checkpoints, whatever the base was loaded from
    model.to(DTYPES[dtype]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "config.json", _config)
    _rewrite(folder / "tokenizer_config.json", _tokenizer)


def settle(model: Any, tokenizer: Any) -> None:
    """What ends and fills a reply, in both configs: in an adapter's folder nobody reads a generation config."""
    config, special = model.config, (tokenizer.bos_token_id, tokenizer.pad_token_id)
    config.bos_token_id, config.pad_token_id = special
    config.eos_token_id = tokenizer.eos_token_id
    config.use_cache = True
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    config._name_or_path = model.name_or_path = ""  # a path of this machine
    if (generation := getattr(model, "generation_config", None)) is not None:
        ends = [i for i in stops(tokenizer, model) if i != tokenizer.pad_token_id]
        generation.bos_token_id, generation.pad_token_id = special
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]


def _rewrite(file: Path, change: Any) -> None:
    held = change(json.loads(file.read_text()))
    file.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n")


def _config(held: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 reads `torch_dtype`, `rope_theta`, `rope_scaling` and their kin; without them it takes its defaults, in silence."""
    rope = held.get("rope_parameters") or {}
    if "full_attention" in rope:  # one for each kind of layer: Gemma 3 alone has words for them there
        local, rope = rope.get("sliding_attention") or {}, rope["full_attention"]
        held |= {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
    if "rope_theta" in rope or "rope_type" in rope:
        held["rope_theta"], part = rope.get("rope_theta", 10000.0), rope.get("partial_rotary_factor")
        held |= {} if part is None else {"partial_rotary_factor": part}
        if held["model_type"] == "gpt_neox":
            held |= {"rotary_emb_base": held["rope_theta"], "rotary_pct": 0.25 if part is None else part}
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        held["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    return held | {"torch_dtype": held.get("dtype")}


def _tokenizer(held: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 knows neither `TokenizersBackend` nor `extra_special_tokens` as a list."""
    if held.get("tokenizer_class") == "TokenizersBackend":
        held["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := held.pop("extra_special_tokens", None), list):
        held["additional_special_tokens"] = extra
    for name in ("backend", "is_local", "local_files_only"):
        held.pop(name, None)
    return held
