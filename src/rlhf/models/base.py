"""Bases and scalar heads, loaded or made, in 4 bit or not; what of them a stage leaves."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.config import Stage
from rlhf.errors import Refusal, nearest
from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.tokenizer import pretrained, stops


class Score(nn.Linear):
    """The scalar head of a reward model, in fp32 whatever the backbone computes in: `[..., H]` to `[..., 1]`."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def load_base(stage: Stage, tokenizer: Any, path: str | None = None, reward: bool = False) -> Any:
    """The base of a stage: a causal LM, or with `reward` a sequence classifier with one fp32 scalar head.

    `path` replaces `model.path`: with adapter=none the stages hand each other whole models. On a GPU frozen weights are
    held in bf16; on the CPU, and where they are trained, in fp32, since a step below 1/256 of a bf16 weight is lost.
    Linear layers are held in what the group `quantization` says.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(stage.seed)  # new adapters are drawn after it: all first weights of a run follow from its seed
    source = path or stage.model.path
    base, fresh = _from_scratch(stage, tokenizer, reward) if source is None else _loaded(stage, source, reward)
    if (rows := base.get_input_embeddings().num_embeddings) < len(tokenizer):
        why = f"it has embeddings for {rows} tokens, the tokenizer has {len(tokenizer)}"
        fix = "the tokenizer that belongs to it, or in model.pad_token one it knows"
        raise Refusal("model.path", source, why, fix=fix)
    plain_4bit_kernels(base)
    base.config.pad_token_id = tokenizer.pad_token_id
    base.config.use_cache = False
    if getattr(base, "generation_config", None) is not None:  # sequence classifiers have none
        _settle_generation(base, tokenizer)
    if reward:
        _fp32_head(base, fresh)
    return base


def _from_scratch(stage: Stage, tokenizer: Any, reward: bool) -> tuple[Any, bool]:
    """Random weights of the sizes `model.init`, and that their head is new."""
    from transformers import AutoConfig

    assert stage.model.init is not None
    sizes = {k: v for k, v in stage.model.init.items() if k != "model_type"}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    kind, labels = _kind(reward)
    config = AutoConfig.for_model(str(stage.model.init["model_type"]), **sizes, **special, **labels)
    return kind.from_config(config, attn_implementation=stage.model.attention), True


def _loaded(stage: Stage, source: str, reward: bool) -> tuple[Any, bool]:
    """The weights at `source`, a hub id or a folder, and whether their head is new."""
    kind, labels = _kind(reward)
    base, report = pretrained(
        kind,
        source,
        "model.path",
        raised=OSError,
        revision=stage.model.revision if source == stage.model.path else None,
        attn_implementation=stage.model.attention,
        trust_remote_code=stage.model.trust_remote_code,
        output_loading_info=True,
        **placement(stage),
        **labels,
    )
    return base, any("score" in name for name in report["missing_keys"])


def _kind(reward: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return (AutoModelForSequenceClassification, {"num_labels": 1}) if reward else (AutoModelForCausalLM, {})


def placement(stage: Stage) -> dict[str, Any]:
    """Where the weights of a stage lie, and how: what every `from_pretrained` is told."""
    on_gpu, frozen = stage.hardware.device == "cuda", stage.adapter.name != "none"
    return {
        "dtype": torch.bfloat16 if on_gpu and stage.hardware.precision == "bf16" and frozen else torch.float32,
        "quantization_config": quantization_config(stage),
        "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))} if on_gpu else None,
        "use_safetensors": True,
    }


def _settle_generation(model: Any, tokenizer: Any) -> None:
    """Saved models must stop where they were taught to, and padding must not be among the tokens that stop them."""
    ids = [i for i in stops(tokenizer, model) if i != tokenizer.pad_token_id]
    model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def _fp32_head(base: Any, fresh: bool) -> None:
    """Replace the head by one in fp32; a new one starts at N(0, 1/(d+1)) (Huang et al. 2024, arXiv:2403.17031)."""
    width = base.config.get_text_config().hidden_size
    head = Score(width, 1, bias=False, device=base.device, dtype=torch.float32)
    with torch.no_grad():
        if fresh:
            nn.init.normal_(head.weight, std=(width + 1) ** -0.5)
        else:
            head.weight.copy_(base.score.weight)
    base.score = head


def save_final(model: Any, tokenizer: Any, folder: Path) -> None:
    """What Hugging Face users expect: adapter or model in safetensors, its config, tokenizer and chat template."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def quantization_config(stage: Stage) -> Any:
    """The group `quantization` as a BitsAndBytesConfig, or None; its class swallows typos, its signature tells them."""
    if stage.quantization.name == "none":
        return None
    from transformers import BitsAndBytesConfig

    known = set(inspect.signature(BitsAndBytesConfig.__init__).parameters) - {"self", "kwargs"}
    for key in stage.quantization.args:
        if key not in known:
            why = f"not a field of BitsAndBytesConfig{nearest(key, known)}"
            raise Refusal(f"quantization.args.{key}", stage.quantization.args[key], why)
    compute = "bfloat16" if stage.hardware.precision == "bf16" else "float32"
    # the scalar head must stay out of it: quantized, it could not be trained or loaded back
    fixed = {"llm_int8_skip_modules": ["lm_head", "score", "classifier"], "bnb_4bit_compute_dtype": compute}
    return BitsAndBytesConfig(**(fixed | dict(stage.quantization.args)))
