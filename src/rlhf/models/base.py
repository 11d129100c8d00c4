"""Bases and scalar heads, loaded or made, in 4 bit or not; what of them a stage leaves."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from rlhf.config import Stage
from rlhf.errors import Refusal, nearest
from rlhf.models.checks import adapter_base, tokenizer_home, unreadable
from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.tokenizer import stops
from rlhf.parallel import ranks
from rlhf.shell import setting


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


def load_whole(stage: Stage, tokenizer: Any, reward: bool = False) -> Any:
    """The model that adapter=none trains, from `method.start_from` or the base, cut over the ranks by hardware.sharding."""
    if stage.hardware.sharding == "none":
        return load_base(stage, tokenizer, path=stage.method.start_from, reward=reward)
    from rlhf.parallel.sharding import shard

    on_cpu = replace(stage, hardware=replace(stage.hardware, device="cpu"))  # a device has room for a layer at a time
    with ranks.agreed():
        model = load_base(on_cpu, tokenizer, path=stage.method.start_from, reward=reward)
    return shard(model, stage.hardware.device)


def _from_scratch(stage: Stage, tokenizer: Any, reward: bool) -> tuple[Any, bool]:
    """Random weights of the sizes `model.init`, and that their head is new."""
    from transformers import AutoConfig

    assert stage.model.init is not None
    sizes = {k: v for k, v in stage.model.init.items() if k != "model_type"}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    kind, labels = _kind(reward)
    config = AutoConfig.for_model(str(stage.model.init["model_type"]), **sizes, **special, **labels)
    if (quantization := quantization_config(stage)) is None:
        return kind.from_config(config, attn_implementation=stage.model.attention), True
    from rlhf.models.drawn import drawn

    place, attention = placement(stage), stage.model.attention  # what measurements train; settings refuse it
    where = place["device_map"][""]
    return drawn(kind, config, quantization, dtype=place["dtype"], device=where, attention=attention), True


def _loaded(stage: Stage, source: str, reward: bool) -> tuple[Any, bool]:
    """The weights at `source`, a hub id or a folder, and whether their head is new. An adapter folder stands for its base
    with the adapter merged into it.

    Raises a Refusal for weights that transformers can't read, that are torn, or that lack some of the model's.
    """
    kind, labels = _kind(reward)
    with merged(stage, source) as place:
        options: dict[str, Any] = {"trust_remote_code": stage.model.trust_remote_code, "output_loading_info": True}
        options["revision"] = stage.model.revision if place == stage.model.path else None
        base, report = read_weights(
            kind, place, source, attn_implementation=stage.model.attention, **options, **placement(stage), **labels
        )
    base.config._name_or_path = base.name_or_path = source  # adapters on it are saved with the name of their base
    missing = sorted(name for name in report["missing_keys"] if "score" not in name)
    if missing:
        why = f"{len(missing)} of its weights are not in its files, {missing[0]} the first: they would be random"
        raise Refusal("model.path", source, why, fix="the whole model, downloaded or saved again")
    return base, any("score" in name for name in report["missing_keys"])


def read_weights(kind: Any, place: str, source: str, **options: Any) -> Any:
    """`kind.from_pretrained(place)`; what it can't read is a Refusal of `model.path=source`."""
    from safetensors import SafetensorError

    try:
        return kind.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise unreadable("model.path", source, error) from error
    except RuntimeError as error:  # memory that ran out is one too
        if "size mismatch" not in str(error) and "mismatched" not in str(error):
            raise
        raise unreadable("model.path", source, error) from error


@contextmanager
def merged(stage: Stage, source: str) -> Iterator[str]:
    """`source`; or if that is an adapter folder, a folder that holds its base with the adapter merged into it meanwhile.

    By whatever PEFT can merge, at the precision that the base is held in before it is quantized. Raises a Refusal for an
    adapter that PEFT can't merge, that is a reward model's, or whose files lack some of it.
    """
    name = adapter_base(source)
    if name is None:
        yield source
        return
    from transformers import AutoModelForCausalLM

    folder = Path(source).expanduser()
    options = {name: value for name, value in placement(stage).items() if name in ("dtype", "use_safetensors")}
    base = read_weights(AutoModelForCausalLM, name, name, trust_remote_code=stage.model.trust_remote_code, **options)
    plain = not getattr(
        base, "is_quantized", False
    )  # a dequantized one has no format to go back to (transformers 5.23)
    model = merge(base, folder)
    model.should_save_on_this_rank = lambda _: True  # or transformers 5.23 writes nothing on any rank but the first
    with TemporaryDirectory(prefix="merged-") as place:
        model.save_pretrained(place, save_original_format=plain)
        del base, model
        yield place


def merge(base: Any, folder: Path, key: str = "model.path") -> Any:
    """`base`, quantized or not, with the adapter in `folder` merged into it: plain weights. A causal LM, or of a reward model's
    adapter a sequence classifier, which gets its head. A Refusal of `key=folder` for what can't be merged or does not fit.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoTokenizer

    fix = "give model.path= its base, or an adapter that can be merged"
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(key, folder, error) from error
    if config.task_type == "SEQ_CLS" and not hasattr(base, "score"):
        raise Refusal(key, folder, "is the adapter of a reward model", fix=setting("method.reward_model", folder))
    if config.is_prompt_learning:
        why = f"is of the kind {getattr(config.peft_type, 'value', config.peft_type)}, which adds to the prompt and can't be merged into weights"
        raise Refusal(key, folder, why, fix=fix)
    base = base.dequantize() if getattr(base, "is_quantized", False) else base
    if tokenizer_home(folder) == folder:
        rows = len(AutoTokenizer.from_pretrained(folder))
        if rows > base.get_input_embeddings().num_embeddings:  # tokens added before it was trained
            base.resize_token_embeddings(rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, str(folder), config=config)
    if torn := [str(one.message) for one in told if "adapter keys" in str(one.message)]:
        raise Refusal(key, folder, f"does not fit its base: {torn[0][:200]}", fix="the base it was trained on")
    _untie(base)
    try:
        whole = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise Refusal(key, folder, f"PEFT can't merge it: {str(error)[:200]}", fix=fix) from error
    if whole.get_output_embeddings() is not None and not _tied(whole):
        whole.config.tie_word_embeddings = whole.config.get_text_config().tie_word_embeddings = False
    return whole


def _ends(model: Any) -> list[Any]:
    """The weights of the first and the last layer, those below an adapter if they carry one."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [end.get_base_layer() if hasattr(end, "get_base_layer") else end for end in ends]


def _tied(model: Any) -> bool:
    first, last = _ends(model)
    return first.weight.data_ptr() == last.weight.data_ptr()


def _untie(base: Any) -> None:
    """Gives the last layer a copy of the embeddings if one of the two carries an adapter: the other must not get it too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if base.get_output_embeddings() is None:  # a sequence classifier
        return
    wrapped = (
        isinstance(base.get_input_embeddings(), BaseTunerLayer),
        isinstance(base.get_output_embeddings(), BaseTunerLayer),
    )
    if _tied(base) and any(wrapped):
        last = _ends(base)[1]
        last.weight = nn.Parameter(last.weight.detach().clone(), requires_grad=False)


def _kind(reward: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return (AutoModelForSequenceClassification, {"num_labels": 1}) if reward else (AutoModelForCausalLM, {})


def placement(stage: Stage) -> dict[str, Any]:
    """Where the weights of a stage lie, and how: what every `from_pretrained` is told."""
    on_gpu, frozen = stage.hardware.device == "cuda", stage.adapter.name != "none"
    quantization = quantization_config(stage)
    on_cpu = {"": "cpu"} if quantization else None  # or it puts quantized weights on a GPU that it sees
    return {
        "dtype": torch.bfloat16 if on_gpu and stage.hardware.precision == "bf16" and frozen else torch.float32,
        "quantization_config": quantization,
        "device_map": {"": 0} if on_gpu else on_cpu,  # a process sees one GPU (rlhf.parallel.ranks)
        "use_safetensors": True,
    }


def _settle_generation(model: Any, tokenizer: Any) -> None:
    """Saved models must stop where they were taught to, and padding must not be among the tokens that stop them."""
    ids = [i for i in stops(tokenizer, model) if i != tokenizer.pad_token_id]
    model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def _fp32_head(base: Any, fresh: bool) -> None:
    """Replace the head by one in fp32; a new one starts at N(0, 1/(d+1)) (Huang et al. 2024, arXiv:2403.17031)."""
    width = base.score.in_features  # of OPT-350m half of hidden_size
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
