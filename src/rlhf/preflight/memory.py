"""The memory of a stage on one device, from its settings: the tensors that live at the moments at which most of them do.

Each term was read from the code that keeps the tensor (transformers 5.23, PEFT 0.21, TRL 1.12 and 1.16, rlhf.ppo), and their sum is held
against measured peaks (`python src/benchmark.py parts=[plan]`). What differs on a GPU follows from the dtypes, and is held against bytes
that are counted (`parts=[gpu]`, rlhf.benchmark.fake_gpu).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import Stage, split_batch
from rlhf.errors import ConfigError
from rlhf.files import FINAL
from rlhf.methods import FUSED, LOGITS, METHODS, TILE
from rlhf.preflight.sizes import Shape
from rlhf.rewards.functions import PREFIX

# what TRL and rlhf.ppo take where the config is silent, as far as memory and steps depend on it
DEFAULTS = {"num_train_epochs": 3.0, "max_steps": -1, "packing": False, "optim": "adamw_torch_fused", "total_episodes": None,
            "precompute_ref_log_probs": False, "response_length": 53, "num_ppo_epochs": 4, "num_mini_batches": 1,
            "logprob_chunk_size": 128, "rollout_base": "quantized"}  # fmt: skip
LORA = {"r": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}  # of PEFT 0.21, but for the last, which it guesses
ENTROPY_CHUNK = 128  # tokens whose entropies TRL 1.12 makes at a time (utils:527)
GPU_TILE = (
    4096,
    32768,
)  # tokens and ids whose logits TRL 1.15 and later make at a time on a GPU (kernels/chunked_logprob.py)
RANKED = 4  # replies in a ranking where the dataset does not say
# Python, torch and the libraries, measured; a CUDA context and the share that its allocator can't use again, assumed
PROCESS, CONTEXT, FRAGMENTS = 0.6e9, 0.5e9, 0.05
OVERHEAD = ("libraries", "CUDA context", "fragments")

Parts = dict[str, float]


def argument(stage: Stage, name: str) -> Any:
    """A field of the method's TRL config, as the trainer will see it."""
    value = stage.method.args.get(name)
    row = METHODS[stage.method.name]
    value = {**DEFAULTS, **row.defaults}[name] if value is None else value
    return stage.debug.shortened(value) if name == row.reply_length else value


def lora_argument(stage: Stage, name: str) -> Any:
    """A field of the adapter's config, as PEFT will see it."""
    return LORA[name] if stage.adapter.args.get(name) is None else stage.adapter.args[name]


def sequences(stage: Stage) -> int:
    """Sequences that are trained on for a row of a batch: both of a pair, or all replies of a ranking."""
    if stage.method.kwise:
        return int(stage.dataset.options.get("k") or RANKED)
    return 2 if METHODS[stage.method.name].rows == "pairs" else 1


def fewest(stage: Stage) -> int:
    """Rows that a forward pass needs: two, where what a reply gains is held against what others gain."""
    row = METHODS[stage.method.name]
    return row.fewest if row.fewest == 1 or argument(stage, "loss_type") == row.defaults["loss_type"] else 1


def reads(stage: Stage) -> bool:
    """Whether tokens are read by rlhf.generation, and not by TRL's own pass."""
    row, given = METHODS[stage.method.name], stage.method.args
    return (
        row.own_loop
        or bool(row.chunk)
        and all(given.get(name) in (None, False, row.defaults.get(name)) for name in row.trls)
    )


def drops(stage: Stage) -> bool:
    """Whether an adapter drops some of its inputs, and so keeps those that it took."""
    dropout = stage.adapter.name == "lora" and METHODS[stage.method.name].dropout
    return dropout and float(lora_argument(stage, "lora_dropout")) > 0


def lean(stage: Stage) -> bool:
    """Whether LoRA layers keep their input once (rlhf.models.layers)."""
    row = METHODS[stage.method.name]
    return row.lean and (reads(stage) or not row.chunk) and not drops(stage)


@dataclass(frozen=True)
class Work:
    """One forward and backward pass: its sequences, their tokens, and how many bytes its numbers have.

    `low` is the dtype of matrix products, `stream` that of the frozen base and the residual stream, `wide` what a linear layer
    returns: bitsandbytes the dtype it was given; a plain layer under autocast, and those of `rlhf.models.layers`, the low one.
    """

    rows: int
    length: int
    low: int
    stream: int
    wide: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @classmethod
    def of(cls, stage: Stage) -> "Work":
        method, length = METHODS[stage.method.name], stage.dataset.max_length
        rows = min(split_batch(stage)[0], stage.batch_size // int(argument(stage, "num_mini_batches")))
        if method.reply_length:
            length = stage.dataset.max_prompt_length + int(argument(stage, method.reply_length))
            length = -(-length // 8) * 8 if method.own_loop else length  # as rlhf.generation.batches pads
        bf16, frozen = stage.hardware.precision == "bf16", stage.adapter.name != "none"
        low, stream = 2 if bf16 else 4, 2 if bf16 and frozen and stage.hardware.device == "cuda" else 4
        rows *= sequences(stage)
        return cls(rows, length, low, stream, low if stage.quantization.name == "none" or lean(stage) else stream)


def targets(stage: Stage, shape: Shape) -> list[tuple[str, int, int]]:
    """The matrices of a layer that are trained: those with an adapter, or all."""
    names = lora_argument(stage, "target_modules")
    if stage.adapter.name == "none" or names == "all-linear":
        return list(shape.linears)
    known = dict.fromkeys(name for name, _, _ in shape.linears)
    if not isinstance(names, list) or not set(map(str, names)) <= set(known):
        allowed = f"all-linear, or a list of {', '.join(known)}"
        raise ConfigError(f"adapter.args.target_modules={names} is not known here\n  allowed: {allowed}")
    return [linear for linear in shape.linears if linear[0] in names]


def adapter_weights(stage: Stage, shape: Shape) -> int:
    """Numbers in one adapter: r * (inputs + outputs) for each matrix that carries one (Hu et al. 2021, arXiv:2106.09685)."""
    rank = int(lora_argument(stage, "r"))
    return shape.layers * rank * sum(inputs + outputs for _, inputs, outputs in targets(stage, shape))


def role_bytes(stage: Stage, shape: Shape) -> Parts:
    """What each role has of its own, in fp32: an adapter or a whole model, and a scalar head."""
    lora = stage.adapter.name == "lora"
    language = adapter_weights(stage, shape) if lora else shape.parameters
    scalar = language + shape.hidden - (0 if lora else shape.head)
    method = METHODS[stage.method.name]
    roles = {role: 4.0 * (scalar if role in ("reward", "value") else language) for role in method.roles}
    if "reward_model" in method.options:
        roles["reward"] = sum(scorer_bytes(source, 4.0 * scalar) or 0.0 for source in stage.method.reward_models)
    return roles


def scorer_bytes(source: str, own: float) -> float | None:
    """A rule, `own` for what a reward stage left, the files of a local classifier, or None for one on the hub."""
    folder = Path(source).expanduser()
    if source.startswith(PREFIX):
        return 0.0
    if folder.name == FINAL or (folder / "adapter_config.json").is_file():
        return own
    return float(sum(file.stat().st_size for file in folder.glob("*.safetensors"))) if folder.is_dir() else None


def base_bytes(stage: Stage, shape: Shape, work: Work) -> float:
    """The frozen base under the adapters; that of a reward stage has no matrix to the vocabulary."""
    # NF4: 4 bits, and for 64 of them a scale in fp32, or in 8 bits with an fp32 scale of its own for 256 (arXiv:2305.14314)
    scale = (1 + 4 / 256) / 64 if stage.quantization.args.get("bnb_4bit_use_double_quant") else 4 / 64
    each = {"nf4": 0.5 + scale, "int8": 1.0, "none": float(work.stream)}[stage.quantization.name]
    head = shape.head if "policy" in METHODS[stage.method.name].roles else 0
    return shape.matrices * each + (shape.embeddings + head) * work.stream


def layer_bytes(stage: Stage, shape: Shape, work: Work) -> float:
    """What a layer keeps of one token for backward, in bytes."""
    h, q, k, low, family = shape.hidden, shape.queries, shape.keys, work.low, shape.family
    carried, lora, method = targets(stage, shape), stage.adapter.name == "lora", METHODS[stage.method.name]
    on_gpu = stage.hardware.device == "cuda"
    # with dropout each A has an input of its own, and a mask, of a byte a number on a GPU
    dropout = drops(stage)
    # norms keep their inputs in fp32, or once more as they came (rlhf.models.layers), and the normalized values where their weights are trained
    once = lora and lean(stage)
    kept = family.norms * h * (work.stream if once else 4 if lora else 4 + work.stream)
    kept += (q + k) * (work.wide if once else 4) * family.head_norms
    # q, k, v and gate, up read the same tensor, unless each has a cast to bf16 of its own
    apart = dropout or (low == 2 and not (lean(stage) and work.stream == 2))  # once is enough for rlhf.models.layers
    for readers in ((0,), (2,)) if shape.fused else ((0, 1, 2), (4, 5)):
        count = sum(shape.linears[i] in carried for i in readers)
        kept += (count if apart else min(count, 1)) * h * low
    if dropout:
        kept += q * low + sum(inputs for _, inputs, _ in carried) * (1 if on_gpu else low)
    attends = 4 if method.own_loop and not on_gpu else low  # rlhf.models.layers
    # scaled dot product: q, k, v and its output, which o reads; a fused q, k, v stays whole beside the rotated q and k
    kept += 3 * h * work.wide + (3 if family.rotary else 1) * h * low if shape.fused else 2 * (q + k) * attends
    if stage.model.attention == "eager":  # a row of scores for each head, after softmax in fp32 and cast back
        kept += shape.heads * work.length * (4 if low == 4 else 6)
    if lora:  # the r numbers behind each A
        kept += int(lora_argument(stage, "r")) * len(carried) * low
    if once and family.inner == 3 and shape.linears[-1] in carried:  # gate and up alone
        return kept + 2 * work.wide * shape.inner
    return kept + (family.inner * work.wide + low) * shape.inner


def logits_bytes(stage: Stage, shape: Shape, work: Work) -> float:
    """The most that exists of logits over the vocabulary, and of what is computed from them, in the loss."""
    method, vocabulary, matrix = METHODS[stage.method.name], shape.vocabulary, shape.vocabulary * shape.hidden
    cast = 2 * matrix if work.low < work.stream else 0
    if "policy" not in method.roles:
        return 0
    if reads(stage):
        # rlhf.generation.logprobs: logits, log-softmax and its exponential of a chunk in fp32, and two hidden rows a reply token
        replies = work.rows * int(argument(stage, method.reply_length)) if method.reply_length else work.tokens
        few = max(8, LOGITS * shape.hidden // vocabulary)
        chunk = min(min(method.chunk, few) if method.chunk else int(argument(stage, "logprob_chunk_size")), replies)
        return 12 * chunk * vocabulary + cast + 2 * replies * shape.hidden * work.stream
    if method.chunked and FUSED:
        # kernels/chunked_logprob.py: on a GPU a tile; in torch seven more of it in fp32, or two of it and of its part of the matrix
        ids, slope = min(vocabulary, GPU_TILE[1]), 4 * work.tokens * shape.hidden
        if stage.hardware.device == "cuda":
            return work.low * min(work.tokens, GPU_TILE[0]) * GPU_TILE[1] + min(cast, 2 * ids * shape.hidden) + slope
        tile = min(TILE, work.tokens)
        rest = 29 * tile if work.low == 4 else max(29 * tile, 4 * (tile + shape.hidden)) + 2 * shape.hidden
        return ids * (work.low * tile + rest) + slope
    if method.chunked and argument(stage, "loss_type") == method.defaults["loss_type"]:
        # sft_trainer:101: logits, log-softmax, its exponential, the product; or before them a copy of the matrix in fp32, and of that in bf16
        held = min(TILE, work.tokens) * vocabulary
        return 16 * held if work.low == 4 else max(6 * matrix if work.stream == 2 else 0, 2 * matrix + 14 * held)
    # all logits, again for log-softmax or the reference, and without the last token for the entropies, which take more rows
    once = argument(stage, "precompute_ref_log_probs")
    tokens = (2 if once else 3) * work.tokens - work.rows + (3 if work.low == 4 else 4) * ENTROPY_CHUNK
    return 4 * vocabulary * tokens + cast


def cache_bytes(shape: Shape, work: Work, rows: int, length: int) -> float:
    """Keys and values of all layers (rlhf.generation.cache), and the logits of one step with what sampling makes of them."""
    return rows * length * 2 * shape.layers * shape.keys * work.wide + rows * shape.vocabulary * 4 * 5


def forward_bytes(shape: Shape, work: Work, tokens: int) -> float:
    """A pass without backward at its widest: a layer's input twice and its output, gate, and the three sums of LoRA."""
    return tokens * (4 * shape.inner + 3 * shape.hidden) * work.wide


def estimate(stage: Stage, shape: Shape) -> dict[str, Parts]:
    """Bytes by part, for each moment that may be the peak; the sum of a moment's parts is what it needs.

    `update` is a forward and backward pass, `step` the optimizer's, `rollout` samples replies, `evaluation` comes after training, when
    the trainer and what it held are gone.
    """
    work, hardware, method = Work.of(stage), stage.hardware, METHODS[stage.method.name]
    roles, optim = role_bytes(stage, shape), str(argument(stage, "optim"))
    weights = ({"base": base_bytes(stage, shape, work)} if stage.adapter.name == "lora" else {}) | roles
    cut = hardware.devices if hardware.sharding != "none" else 1
    held_here = {part: size / cut for part, size in weights.items()} | _gathered(stage, shape, cut)
    trained = sum(roles[role] for role in method.trained) / cut
    one, none = ("rmsprop", "adagrad", "lion"), ("sgd", "adafactor")
    states = 0 if any(o in optim for o in none) else 1 if any(o in optim for o in one) else 2
    held = held_here | {"optimizer": states * trained * (0.25 if "8bit" in optim else 1)}
    gradients = trained
    micro, accumulation = split_batch(stage)

    layer, last = layer_bytes(stage, shape, work), (3 * work.wide - work.low) * shape.inner
    logits, kept = logits_bytes(stage, shape, work), 3 * shape.hidden * work.stream
    if hardware.gradient_checkpointing:
        kept, last = kept + shape.layers * shape.hidden * work.stream, last + layer
    else:
        kept += shape.layers * layer
    update = {
        "gradients": gradients if method.own_loop or accumulation > 1 else 0.0,
        # where the backward pass of the last layer begins, the logits are gone
        "activations": work.tokens * kept + max(0.0, work.tokens * last - logits),
        "logits": logits,
        "bf16 copies": 2.0 * shape.matrices if stage.quantization.name == "none" and work.low < work.stream else 0.0,
    }
    if cut > 1 and hardware.gradient_checkpointing:  # they are made again with each layer
        update["bf16 copies"] /= shape.layers
    found = {"update": held | update, "step": held | {"gradients": gradients}}
    if method.reply_length:
        prefill = forward_bytes(shape, work, micro * stage.dataset.max_prompt_length)
        found["rollout"] = held | {"KV cache": cache_bytes(shape, work, micro, work.length), "activations": prefill}
        dense = stage.quantization.name == "nf4" and argument(stage, "rollout_base") == "dense"
        found["rollout"]["dense base"] = float(dense * shape.matrices * work.low)
    found["evaluation"] = _evaluation(stage, shape, work, weights)
    for parts in found.values():
        on_gpu = {"CUDA context": CONTEXT, "fragments": FRAGMENTS * sum(parts.values())}
        parts |= on_gpu if hardware.device == "cuda" else {"libraries": PROCESS}
    return {moment: {part: size for part, size in parts.items() if size} for moment, parts in found.items()}


def _gathered(stage: Stage, shape: Shape, cut: int) -> Parts:
    """What FSDP2 holds whole: of two layers the weights, of one the gradient and what is sent of it; the embeddings and the head with
    their gradient while a batch is computed, and those of the reference."""
    if cut == 1:
        return {}
    ends = shape.embeddings + (shape.head if "policy" in METHODS[stage.method.name].roles else 0)
    return {"gathered": 4.0 * (4 * shape.matrices / shape.layers + ends * (1 + len(METHODS[stage.method.name].roles)))}


def _evaluation(stage: Stage, shape: Shape, work: Work, weights: Parts) -> Parts:
    """Replies to test prompts, then their log-probabilities under policy and reference; or the scores of held-out pairs."""
    dataset, settings = stage.dataset, stage.evaluation
    if METHODS[stage.method.name].leaves == "reward":
        tokens = settings.batch_size * dataset.max_length if dataset.splits.eval else 0
        return weights | {"activations": forward_bytes(shape, work, tokens)}
    needed = {part: size for part, size in weights.items() if part in ("base", "policy", "reference")}
    if dataset.splits.test is None or not settings.prompts:
        return needed
    if stage.method.start_from is not None:
        needed["reference"] = needed["policy"]
    rows, length = min(settings.batch_size, settings.prompts), dataset.max_prompt_length + settings.max_new_tokens
    scored = forward_bytes(shape, work, rows * length) + 8 * TILE * shape.vocabulary
    cache = cache_bytes(shape, work, rows, length)
    return needed | ({"KV cache": cache} if cache > scored else {"activations": scored})
