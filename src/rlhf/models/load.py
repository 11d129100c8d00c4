"""Bases, adapters and scalar heads: what a stage starts from, and what it finds in the folder of an earlier one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.args import lora_config, quantization_config
from rlhf.config import Stage
from rlhf.errors import ConfigError
from rlhf.ppo.shared import plain_4bit_kernels, same_base


class Score(nn.Linear):
    """The scalar head of a reward model, in fp32 whatever the backbone and autocast compute in: `[..., H]` to `[..., 1]`."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def load_base(stage: Stage, tokenizer: Any, path: str | None = None, reward: bool = False) -> Any:
    """The base of a stage: a causal LM, or with `reward` a sequence classifier with one fp32 scalar head.

    `path` replaces `model.path`: with adapter=none the stages hand each other whole models. On a GPU frozen weights are held in
    bf16; on the CPU, and where they are trained, in fp32, since a step below 1/256 of a bf16 weight is lost. Linear layers are held
    in what the group `quantization` says.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = stage.model
    torch.manual_seed(stage.seed)
    source, fresh = path or model.path, True
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    labels = {"num_labels": 1} if reward else {}
    if source is None:
        assert model.init is not None
        sizes = {k: v for k, v in model.init.items() if k != "model_type"}
        special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = AutoConfig.for_model(str(model.init["model_type"]), **sizes, **special, **labels)
        base = kind.from_config(config, attn_implementation=model.attention)
    else:
        try:
            base, loaded = kind.from_pretrained(
                source,
                revision=model.revision if source == model.path else None,
                attn_implementation=model.attention,
                trust_remote_code=model.trust_remote_code,
                **placement(stage),
                output_loading_info=True,
                **labels,
            )
            fresh = any("score" in name for name in loaded["missing_keys"])
        except OSError as error:
            reason = str(error).splitlines()[0][:300]
            raise ConfigError(
                f"model.path={source} can't be loaded: {reason}\n"
                "  fix: check the name, `hf auth login` for a gated model, or model.path=<local folder>"
            ) from error
    embeddings: Any = base.get_input_embeddings()
    if embeddings.num_embeddings < len(tokenizer):
        raise ConfigError(
            f"model.path={source}: {len(tokenizer)} tokens, but embeddings for {embeddings.num_embeddings}"
        )
    plain_4bit_kernels(base)
    base.config.pad_token_id = tokenizer.pad_token_id
    base.config.use_cache = False
    if getattr(base, "generation_config", None) is not None:  # sequence classifiers have none
        _settle_generation(base.generation_config, tokenizer)
    if reward:
        _fp32_head(base, fresh)
    return base


def placement(stage: Stage) -> dict[str, Any]:
    """Where the weights of a stage lie, and how: what every `from_pretrained` is told."""
    on_gpu, frozen = stage.hardware.device == "cuda", stage.adapter.name != "none"
    return {
        "dtype": torch.bfloat16 if on_gpu and stage.hardware.precision == "bf16" and frozen else torch.float32,
        "quantization_config": quantization_config(stage),
        "device_map": {"": _local_gpu()} if on_gpu else None,
        "use_safetensors": True,
    }


def _local_gpu() -> int:
    import os

    return int(os.environ.get("LOCAL_RANK", "0"))


def _settle_generation(config: Any, tokenizer: Any) -> None:
    """Saved models must stop where they were taught to, and padding must not be among the tokens that stop them."""
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = [
        tokenizer.eos_token_id,
        *(s for s in stops if s not in (None, tokenizer.eos_token_id, tokenizer.pad_token_id)),
    ]
    config.eos_token_id = stops if len(stops) > 1 else stops[0]
    config.pad_token_id = tokenizer.pad_token_id


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


def with_adapter(stage: Stage, base: Any, start: str | None, task: str) -> Any:
    """A trainable LoRA named `default` on `base`: new, or the weights of the adapter folder `start`.

    For SEQ_CLS the scalar head is trained and saved with it. Adapters are fp32: updates of a bf16 weight below 1/256 are lost.
    """
    from peft import LoraConfig, get_peft_model

    lora = lora_config(stage, task)
    if start is not None:
        stored: Any = LoraConfig.from_pretrained(start)
        if lora.r < stored.r:
            raise ConfigError(
                f"adapter.args.r={lora.r}, but method.start_from={start} has rank {stored.r}\n"
                f"  fix: adapter.args.r={stored.r} or more, or train that stage again"
            )
        trained_on, given = stored.base_model_name_or_path, stage.model.path
        if trained_on and given and not same_base(trained_on, given):
            raise ConfigError(
                f"model.path={given}, but the adapter method.start_from={start} was trained on {trained_on}\n"
                f"  fix: model.path={trained_on}, or method.start_from=null"
            )
    if task == "SEQ_CLS":
        lora.modules_to_save = ["score"]
    model = get_peft_model(base, lora)
    if start is not None:
        load_lora(model, Path(start), widen=_scale(stored) / _scale(lora))
    return model


def _scale(lora: Any) -> float:
    """What PEFT multiplies B A by."""
    return lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r)


def load_lora(model: Any, folder: Path, adapter: str = "default", widen: float | None = None) -> None:
    """Copy the LoRA weights of an adapter folder into `model`'s adapter, every one of them or none.

    With `widen`, the ratio of the two scalings, the adapter may have a higher rank and sit on more layers than the stored one: B is
    zero in what is new and rescaled in what is old, so that the model computes what it did before.
    """
    from safetensors.torch import load_file

    stored = load_file(str(folder / "adapter_model.safetensors"))
    own = {
        name.replace(f".{adapter}.", "."): p
        for name, p in model.named_parameters()
        if ".lora_" in name and f".{adapter}." in name
    }
    given = {key: value for key, value in stored.items() if ".lora_" in key}
    odd = sorted(given.keys() - own.keys() if widen else given.keys() ^ own.keys())
    odd += [key for key in given.keys() & own.keys() if not _fits(key, given[key], own[key], widen is not None)]
    if odd:
        raise ConfigError(
            f"{folder} holds an adapter for another model: {', '.join(odd[:2])} do not fit\n"
            "  fix: the same adapter.args.target_modules, or train that stage again"
        )
    with torch.no_grad():
        for key, value in given.items():
            if ".lora_B." in key:
                own[key].zero_()
                value = value * (widen or 1.0)
            own[key][: value.shape[0], : value.shape[1]].copy_(value)


def _fits(key: str, given: torch.Tensor, own: torch.Tensor, widen: bool) -> bool:
    """A is `[rank, in]`, B is `[out, rank]`: only the rank may grow."""
    rank = 0 if ".lora_A." in key else 1
    grows = given.shape[rank] <= own.shape[rank] if widen else given.shape[rank] == own.shape[rank]
    return given.ndim == own.ndim == 2 and given.shape[1 - rank] == own.shape[1 - rank] and grows


@contextmanager
def trainable_kept_in_fp32(model: Any) -> Iterator[None]:
    """TRL's constructors cast what is trainable on a quantized base to bf16 (trl 1.12, sft_trainer:1148); undo that.

    The rounded copy would differ from its own reference, so DPO would not start at ln 2, and fp32 heads would not be fp32.
    """
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


def save_final(model: Any, tokenizer: Any, folder: Path) -> None:
    """What Hugging Face users expect: adapter or model in safetensors, its config, the tokenizer with its chat template."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def adapter_base(folder: Path) -> str | None:
    """The base that an adapter folder was trained on, or None for a whole model."""
    config = folder / "adapter_config.json"
    return json.loads(config.read_text())["base_model_name_or_path"] if config.is_file() else None
