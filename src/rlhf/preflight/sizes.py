"""The sizes of a model without its weights: from `model.init`, the config.json of a local folder, or `model.shape`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import Model, Stage, compose_config, options, to_stage
from rlhf.errors import ConfigError, nearest
from rlhf.files import FINAL
from rlhf.models.checks import adapter_base


@dataclass(frozen=True)
class Family:
    """What a layer of an architecture of transformers 5.23 has beyond its sizes.

    `linears` names its matrices as PEFT sees them: q, k, v, o, gate, up, down, or qkv in one, o, up, down. For backward it
    keeps the inputs of `norms` norms (GPT-NeoX's two have one) and, beside what `down` reads, `inner` tensors of the inner
    size: gate, silu(gate) and up; the input of a fused GELU; the four of the formula that GPT-2 writes out.
    """

    linears: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    norms: int = 2
    inner: int = 3
    head_norms: bool = False
    rotary: bool = True


NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
FAMILIES = dict.fromkeys(("llama", "mistral", "qwen2"), Family()) | {
    "qwen3": Family(head_norms=True),
    "gemma3_text": Family(norms=4, head_norms=True),
    "gpt_neox": Family(NEOX, norms=1, inner=1),
    "gpt2": Family(("c_attn", "c_proj", "c_fc", "c_proj"), inner=4, rotary=False),
}
# GPT-2's config has names of its own
RENAMED = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
           "n_inner": "intermediate_size", "n_positions": "max_position_embeddings"}  # fmt: skip
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; norms and biases, 0.2% of its weights at most, are left out.

    `queries` and `keys` are heads times their width, `linears` the matrices of a layer as (name, inputs, outputs), `head` the
    weights of the matrix to the vocabulary, 0 where it is the embedding's.
    """

    family: Family
    hidden: int
    inner: int
    layers: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    linears: tuple[tuple[str, int, int], ...]
    embeddings: int
    head: int

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values are views of one tensor."""
        return len(self.linears) == 4

    @property
    def matrices(self) -> int:
        """Weights in the matrices of all layers: what quantization packs."""
        return self.layers * sum(inputs * outputs for _, inputs, outputs in self.linears)

    @property
    def parameters(self) -> int:
        """Of the whole causal LM."""
        return self.matrices + self.embeddings + self.head


def read_shape(sizes: Mapping[str, Any], where: str) -> Shape:
    """A shape from the names of config.json; raises ConfigError, which names `where`, if one is missing or unknown."""
    sizes = {RENAMED.get(key, key): value for key, value in (sizes.get("text_config") or sizes).items()}
    kind = str(sizes.get("model_type"))
    if kind not in FAMILIES:
        hint = f"{nearest(kind, FAMILIES)}\n  known: {', '.join(FAMILIES)}"
        raise ConfigError(f"{where}.model_type={kind} is not an architecture that can be planned{hint}")
    needed = NEEDED if kind == "gpt2" else (*NEEDED, "intermediate_size")
    if missing := [key for key in needed if not isinstance(sizes.get(key), int)]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}\n  fix: copy them from the model's config.json")
    family = FAMILIES[kind]
    h, heads, vocabulary = (sizes[key] for key in ("hidden_size", "num_attention_heads", "vocab_size"))
    f, width = sizes.get("intermediate_size") or 4 * h, sizes.get("head_dim") or h // heads
    q, k = heads * width, (sizes.get("num_key_value_heads") or heads) * width
    fused = [(h, q + 2 * k), (q, h), (h, f), (f, h)]
    matrices = fused if len(family.linears) == 4 else [(h, q), (h, k), (h, k), (q, h), (h, f), (h, f), (f, h)]
    return Shape(
        family=family,
        hidden=h,
        inner=f,
        layers=sizes["num_hidden_layers"],
        heads=heads,
        queries=q,
        keys=k,
        vocabulary=vocabulary,
        linears=tuple((name, i, o) for name, (i, o) in zip(family.linears, matrices, strict=True)),
        embeddings=(vocabulary + (0 if family.rotary else sizes.get("max_position_embeddings", 1024))) * h,
        head=0 if sizes.get("tie_word_embeddings", kind in ("gpt2", "gemma3_text")) else vocabulary * h,
    )


def shape_of(stage: Stage) -> Shape:
    """The shape of a stage's base; a `${stage:x}` that has not run has the shape which stage x of the recipe will make.

    Raises ConfigError where nothing here knows the sizes.
    """
    return read_shape(*_sizes(stage.model))


def _sizes(model: Model) -> tuple[Mapping[str, Any], str]:
    if model.init is not None:
        return model.init, "model.init"
    path = Path(adapter_base(model.path) or str(model.path)).expanduser()
    if (path / "config.json").is_file():
        return json.loads((path / "config.json").read_text()), f"{path}/config.json"
    if model.shape:
        return model.shape, "model.shape"
    if path.name == FINAL and (origin := "/".join(path.parts[-3:-1])) in options("recipes"):
        return _sizes(to_stage(compose_config([f"recipes={origin}"])).model)
    raise ConfigError(
        f"model.path={model.path}: its sizes are not known here, and nothing is downloaded for a plan\n"
        "  fix: in model.path a local folder, or copy them from its config.json: 'model.shape={model_type: llama, hidden_size: 4096, "
        "intermediate_size: 11008, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 32, vocab_size: 32000}'"
    )
