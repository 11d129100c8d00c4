"""What the files beside the weights say against the settings: read before any weight is, and where transformers is not needed without it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config import Stage
from rlhf.errors import Refusal, nearest
from rlhf.methods import METHODS
from rlhf.parallel.ranks import is_main
from rlhf.shell import element

CONFIG = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
# what a base in one of bitsandbytes' forms is loaded with
STORED = {"load_in_4bit": "nf4", "load_in_8bit": "int8"}


def adapter_base(path: object) -> str | None:
    """The base that an adapter folder names, or None where `path` is no adapter folder; a Refusal of `model.path`."""
    folder = Path(str(path)).expanduser()
    if not (folder / CONFIG).is_file():
        return None
    try:
        base = json.loads((folder / CONFIG).read_text()).get("base_model_name_or_path")
    except ValueError as error:
        raise Refusal("model.path", path, f"its {CONFIG} is not JSON ({error})", fix="train it again") from error
    absent = str(base).startswith((".", "/", "~")) and not Path(str(base)).expanduser().exists()
    if not base or absent:
        why = f"is an adapter on the base {base}, which is not there" if base else "is an adapter that names no base"
        change = r's#"base_model_name_or_path": [^,]*#"base_model_name_or_path": "<folder of the base>"#'
        raise Refusal("model.path", path, why, fix=f"sed -i '{change}' '{folder / CONFIG}'")
    return str(base)


def tokenizer_home(path: Any) -> Any:
    """Where the tokenizer of `model.path` lies: there, or with the base of an adapter that was saved without one."""
    has_own = any((Path(str(path)).expanduser() / name).is_file() for name in TOKENIZERS)
    return path if has_own else adapter_base(path) or path


def check_model(stage: Stage) -> None:
    """Holds config.json of the base against the settings, and says what is worth knowing of it.

    Raises:
        Refusal: no config.json that transformers reads; weights stored in another form than `quantization`; an attention
            that the architecture lacks; fewer learned positions than the longest row, or prompt with its reply, has.
    """
    base = adapter_base(stage.model.path)
    config = _config(stage, base)
    stored, notes = stored_as(config), list[str]()
    if stored and (base is None or stored not in STORED.values()):
        check_stored(stage, stored)
    if base is not None:
        kept = f", its {stored} weights made whole again" if stored else ""
        notes.append(f"model.path={stage.model.path} is an adapter: merged into its base {base}{kept}")
    elif stored:
        notes.append(f"model.path={stage.model.path} is stored as {stored}: it is loaded as it is")
    check_attention(stage, config)
    for note in [*notes, *position_problems(stage, config)]:
        if is_main():
            print(note, flush=True)


def _config(stage: Stage, base: str | None) -> Any:
    from transformers import AutoConfig

    model = stage.model
    if model.init is not None:
        return _new_config(model.init)
    source, key = base or model.path, "model.path"
    options = {"revision": None if base else model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        return AutoConfig.from_pretrained(str(source), **options)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(key, source, error) from error


def _new_config(init: dict[str, Any]) -> Any:
    """The config of a model that is made here, once a model without memory has been made of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TALKING

    kind, sizes = str(init.get("model_type")), {name: value for name, value in init.items() if name != "model_type"}
    if kind not in TALKING:
        why = f"no architecture of transformers that writes text{nearest(kind, TALKING)}"
        raise Refusal("model.init.model_type", kind, why)
    plain = AutoConfig.for_model(kind)
    known = {*plain.to_dict(), *plain.attribute_map}
    for name, value in sizes.items():
        if name not in known:
            raise Refusal(f"model.init.{name}", value, f"{kind} has no such size{nearest(name, known)}")
        usual = getattr(plain, name, None)  # what is 0 or nothing in others may be so here, and ids start at 0
        counts = isinstance(usual, int) and usual > 0 and not name.endswith("_id")
        if counts and isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise Refusal(f"model.init.{name}", value, "a size starts at 1")
    try:
        config = AutoConfig.for_model(kind, **sizes)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each architecture has its own words and its own kind of error
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise Refusal("model.init", element(init), f"no model can be made of it: {said[-1][:300]}") from error
    return config


def unreadable(key: str, source: object, error: BaseException) -> Refusal:
    """What transformers has against a model that it can't make, in one line, with what helps."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    fix = "check the name, `hf auth login` for a gated model, or give a local folder"
    if "trust_remote_code" in str(error):
        fix = "model.trust_remote_code=true, once you have read the code that comes with it"
    return Refusal(key, source, f"can't be loaded: {said}", fix=fix)


def stored_as(config: Any) -> str | None:
    """How config.json says that weights are stored: `nf4` or `int8` of bitsandbytes, another method, or None if plain."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    ours = [name for flag, name in STORED.items() if settings.get(flag)]
    return ours[0] if ours else str(settings.get("quant_method") or "quantized")


def check_stored(stage: Stage, stored: str) -> None:
    """Weights that are stored quantized take the setting they were stored with, and adapters; nothing quantizes twice."""
    key, path = "model.path", stage.model.path
    if stored not in STORED.values():
        why = f"its weights are stored as {stored}, on which no method here trains"
        raise Refusal(key, path, why, fix="give model.path= the weights that it was made from")
    if stage.adapter.name == "none":
        why = f"its weights are stored as {stored}, and adapter=none would train all of them"
        fix = f"adapter=lora quantization={stored}, or give model.path= the weights that it was made from"
        raise Refusal(key, path, why, fix=fix)
    if stage.quantization.name != stored:
        why = f"its weights are stored as {stored}, and quantization={stage.quantization.name}"
        raise Refusal(key, path, why, fix=f"quantization={stored}")


FLAGS = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}


def check_attention(stage: Stage, config: Any) -> None:
    """Refuses an attention that transformers does not have for this architecture (gemma2 and bloom have no sdpa)."""
    kind, chosen = _class_of(config), stage.model.attention
    if kind is None or chosen not in FLAGS:
        return
    allowed = [name for name, flag in FLAGS.items() if getattr(kind, flag, False)]
    if chosen not in allowed:
        why = f"{kind.__name__} has none in this version of transformers"
        raise Refusal("model.attention", chosen, why, allowed=[*allowed, "eager"], fix="model.attention=eager")


def _class_of(config: Any) -> Any:
    """The causal LM that transformers makes of a config; None for code of the model's own, which answers for itself."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        return None
    return found[0] if isinstance(found, list | tuple) else found


def lengths(stage: Stage) -> dict[str, int]:
    """The most tokens that a pass of this stage reads, by the settings that say so."""
    dataset, settings, row = stage.dataset, stage.evaluation, METHODS[stage.method.name]
    found = {"dataset.max_length": dataset.max_length}
    if row.reply_length:
        given = {**row.defaults, **stage.method.args}.get(row.reply_length) or 53  # TRL's response_length
        asked = dataset.max_prompt_length + stage.debug.shortened(given)
        found = {f"dataset.max_prompt_length + method.args.{row.reply_length}": asked}
    if row.leaves == "policy" and dataset.splits.test is not None and settings.prompts:
        asked = dataset.max_prompt_length + settings.max_new_tokens
        found["dataset.max_prompt_length + evaluation.max_new_tokens"] = asked
    return found


def position_problems(stage: Stage, config: Any) -> Iterator[str]:
    """Raises a Refusal where positions are learned and a row has more; yields a note where they are computed."""
    longest = lengths(stage)
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(known, int) or max(longest.values()) <= known:
        return
    table = learned_positions(config)
    where = "model.init" if stage.model.init is not None else f"model.path={stage.model.path}"
    if table is None:
        most = max(longest, key=lambda name: longest[name])
        yield f"{most}={longest[most]} is beyond the {known} positions of {where}: allowed, since they are computed"
        return
    limit = min(known, table)
    for key, length in longest.items():
        if length > limit:
            fix = _shorter(stage, key, limit)
            why = f"{where} has learned {limit} positions, and a longer row has no embedding for its end"
            raise Refusal(key, length, why, fix=fix)


def _shorter(stage: Stage, key: str, limit: int) -> str:
    """Settings with which nothing is longer than `limit`."""
    if " + " not in key:
        return f"{key}={limit}"
    prompt = min(stage.dataset.max_prompt_length, limit // 2)
    return f"dataset.max_prompt_length={prompt} {key.partition(' + ')[2]}={limit - prompt}"


def learned_positions(config: Any) -> int | None:
    """Rows of a model's table of positions, learned or fixed in length, from a model without weights; None without one."""
    if getattr(config.get_text_config(), "rope_parameters", None):
        return None
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except (ValueError, RuntimeError, NotImplementedError):  # code of its own, which says so itself
        return None
    tables = [
        m.num_embeddings for name, m in model.named_modules() if isinstance(m, torch.nn.Embedding) and _tells(name)
    ]
    tables += [b.shape[0] for name, b in model.named_buffers() if _tells(name) and b.ndim == 2]
    return min(tables, default=None)


def _tells(name: str) -> bool:
    return re.search("pos|^wpe$", name.rpartition(".")[2]) is not None


def check_packing(model: Any) -> None:
    """Refuses a model in which rows of a pack read each other: the second of two rows, alone and behind the first.

    transformers tells rows of a pack apart by their positions, which start again, in most architectures and for every
    attention, but not in all (5.23: not in OPT, Bloom or Falcon).
    """
    import torch

    top = min(model.get_input_embeddings().num_embeddings - 1, 60)
    ids = torch.arange(1, 33, device=model.device).remainder(top).unsqueeze(0)
    positions = torch.cat([torch.arange(16), torch.arange(16)]).unsqueeze(0).to(model.device)
    was, _ = model.training, model.eval()
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 16:].float()
        alone = model(input_ids=ids[:, 16:], use_cache=False).logits[0].float()
    model.train(was)
    # two dtypes of rounding, against what another row does to a hidden state
    if not torch.allclose(
        packed, alone, rtol=0, atol=(2e-2 if model.dtype == torch.bfloat16 else 1e-4) * float(alone.abs().max())
    ):
        apart = float((packed - alone).abs().max())
        name, attention = type(model).__name__, model.config._attn_implementation
        why = (
            f"rows of a pack read each other in {name} with model.attention={attention} (logits differ by {apart:.2g})"
        )
        raise Refusal("method.args.packing", "true", why, fix="method.args.packing=false")
