"""A model of the Llama family as one GGUF file, which llama.cpp, Ollama and LM Studio read; written by the package `gguf`.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The names of tensors and of pre-tokenizers are llama.cpp's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import Refusal
from rlhf.models.tokenizer import stops

TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}
FAMILY = ("llama", "mistral")  # what llama.cpp calls `llama`: the same layers
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# How a byte-level BPE cuts a text before it merges: the parts of tokenizer.json's pre_tokenizer, by llama.cpp's name for it.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> list[dict[str, Any]]:
    cut = {"type": "Split", "pattern": {"Regex": _GPT4 % digits}, "behavior": "Isolated", "invert": False}
    return [cut, _BYTES | {"use_regex": False}]


PRE = {
    "gpt-2": [_BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "llama-bpe": _split("{1,3}"),
    "qwen2": _split(""),
}


def check_gguf(config: Any, tokenizer: Any) -> str:
    """llama.cpp's name for the tokenizer's pre-tokenizer; a Refusal of `to=gguf` for what the writer below can't say in GGUF."""
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in FAMILY:
        raise _refusal(f"its architecture is {config.model_type}, and this writer knows {', '.join(FAMILY)}")
    if rope.get("rope_type", "default") != "default":
        raise _refusal(f"its positions are scaled ({rope['rope_type']})")
    if any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias", "sliding_window")):
        raise _refusal("its layers have biases or a sliding window")
    if config.get_text_config().hidden_act != "silu":
        raise _refusal(f"its activation is {config.hidden_act}")
    return pre_tokenizer(tokenizer)


def pre_tokenizer(tokenizer: Any) -> str:
    """The name under which llama.cpp cuts texts as this byte-level BPE does; a wrong name tokenizes other ids in silence."""
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    cuts, model = held["pre_tokenizer"] or {}, held["model"]
    parts = [{k: v for k, v in part.items() if k != "trim_offsets"} for part in cuts.get("pretokenizers", [cuts])]
    plain = model["type"] == "BPE" and not model.get("byte_fallback") and held["normalizer"] is None
    found = next((name for name, known in PRE.items() if plain and parts == known), None)
    if found is None or bool(model.get("ignore_merges")) != (found == "llama-bpe"):
        raise _refusal(f"its tokenizer is none of the byte-level BPEs {', '.join(PRE)}")
    return found


def _refusal(why: str) -> Refusal:
    fix = "to=[hf], then in that folder llama.cpp's: python convert_hf_to_gguf.py . --outtype f16"
    return Refusal("to", "gguf", why, fix=fix)


def write_gguf(model: Any, tokenizer: Any, dtype: str, file: Path, name: str) -> None:
    """`model` (a causal LM in fp32) into `file`; matrices as `dtype` says, vectors in fp32. Raises what `check_gguf` does."""
    import gguf

    pre, config = check_gguf(model.config, tokenizer), model.config
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    out = gguf.GGUFWriter(file, "llama")
    out.add_name(name)
    out.add_file_type(
        getattr(gguf.LlamaFileType, {"f32": "ALL_F32"}.get(TYPES[dtype], f"MOSTLY_{TYPES[dtype].upper()}"))
    )
    out.add_vocab_size(config.vocab_size)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_key_length(size)
    out.add_value_length(size)
    out.add_rope_dimension_count(size)
    out.add_rope_freq_base((config.rope_parameters or {}).get("rope_theta", 10000.0))
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_tokenizer(out, gguf, model, tokenizer, pre)
    kind = getattr(gguf.GGMLQuantizationType, TYPES[dtype].upper())
    for written, values in tensors(model, heads, kv):
        whole = values.ndim == 1 or (dtype == "q8_0" and values.shape[-1] % 32)
        own = gguf.GGMLQuantizationType.F32 if whole else kind
        out.add_tensor(written, gguf.quants.quantize(values, own), raw_dtype=own)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def tensors(model: Any, heads: int, kv: int) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's name and the fp32 values of each weight; of tied ones the first alone."""
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        place, values = name.removesuffix(".weight"), tensor.detach().float().cpu().numpy()
        if place == "lm_head" and tied:
            continue
        if place in WHOLE:
            yield f"{WHOLE[place]}.weight", values
            continue
        _, _, number, inside = place.split(".", 3)
        rotated = {"self_attn.q_proj": heads, "self_attn.k_proj": kv}.get(inside)
        yield f"blk.{number}.{LAYER[inside]}.weight", values if rotated is None else interleaved(values, rotated)


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """`[heads * size, H]` rows in the order of ggml's rotation, which turns neighbours, where transformers turns halves."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _write_tokenizer(out: Any, gguf: Any, model: Any, tokenizer: Any, pre: str) -> None:
    """Tokens by id with their kinds, merges, and what begins, ends and fills a text. Rows without a token are `[unused]`."""
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = gguf.TokenType
    texts = [f"[unused{i}]" for i in range(model.config.vocab_size)]
    types = [kinds.UNUSED] * len(texts)
    for text, i in held["model"]["vocab"].items():
        texts[i], types[i] = text, kinds.NORMAL
    special = {token["id"] for token in held["added_tokens"] if token["special"]} | set(tokenizer.all_special_ids)
    for token in held["added_tokens"]:
        texts[token["id"]], types[token["id"]] = token["content"], kinds.USER_DEFINED
    for i in special:
        types[i] = kinds.CONTROL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in held["model"]["merges"]]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(texts)
    out.add_token_types(types)
    out.add_token_merges(merges)
    ends = [tokenizer.eos_token_id, *(i for i in stops(tokenizer, model) if i != tokenizer.eos_token_id)]
    out.add_eos_token_id(ends[0])
    if len(ends) > 1:
        out.add_eot_token_id(ends[1])
    out.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        out.add_bos_token_id(tokenizer.bos_token_id)
    out.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)  # llama.cpp would invent one
    out.add_add_eos_token(False)
    if tokenizer.chat_template:
        out.add_chat_template(tokenizer.chat_template)


def modelfile(gguf_name: str, tokenizer: Any, model: Any) -> str:
    """What `ollama create <name> -f Modelfile` reads: the file, the chat template in Go's words, and what ends a reply."""
    ends = [tokenizer.convert_ids_to_tokens(i) for i in stops(tokenizer, model)]
    lines = [f"FROM ./{gguf_name}", *(f'PARAMETER stop "{end}"' for end in ends), "PARAMETER temperature 0"]
    template = go_template(tokenizer)
    lines.append(
        f'TEMPLATE """{template}"""'
        if template
        else "# the chat template is more than turns with markup: use llama-server"
    )
    return "\n".join(lines) + "\n"


def go_template(tokenizer: Any) -> str | None:
    """The chat template as one of Ollama, if all it does is to put markup around each turn; None if it does more."""
    if not tokenizer.chat_template:
        return None
    roles = ("system", "user", "assistant")
    turns = [{"role": role, "content": f"<<{role}>>"} for role in roles]
    try:
        full = tokenizer.apply_chat_template(turns, tokenize=False)
        asked = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
        parts, rest = {}, full
        for turn in turns:
            before, found, rest = rest.partition(turn["content"])
            if not found:
                return None
            parts[turn["role"]] = before
        close = _common_end([rest, *(parts[role] for role in ("user", "assistant"))])
        opens = {role: parts[role].removeprefix(close) for role in roles} | {"system": parts["system"]}
        longer = [*turns, turns[1], turns[2]]
        rendered = "".join(opens[turn["role"]] + turn["content"] + close for turn in longer)
        if rendered.strip() != tokenizer.apply_chat_template(longer, tokenize=False).strip():
            return None
        if opens["assistant"] != asked.partition(f"{turns[1]['content']}{close}")[2]:
            return None
    except Exception:  # each template refuses turns in its own way
        return None
    cases = "".join(
        f'{{{{ if eq .Role "{role}" }}}}{opens[role]}{{{{ .Content }}}}{close}{{{{ end }}}}' for role in roles
    )
    return f"{{{{ range .Messages }}}}{cases}{{{{ end }}}}{opens['assistant']}"


def _common_end(texts: list[str]) -> str:
    """The longest text that the first, up to its last line feed or its end, and all others begin with: what closes a turn."""
    first, others = texts[0], texts[1:]
    for end in range(len(first), -1, -1):
        if all(other.startswith(first[:end]) for other in others):
            return first[:end]
    return ""
