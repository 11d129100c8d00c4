"""What every contender works on: a random-weight base, an SFT and a reward adapter, prompts, and how long replies get."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import ConfigError

PAD, BOS, EOS, FIRST = 0, 1, 2, 3
NATURAL = 0.4  # mean length of a natural reply, as a share of the limit


@dataclass(frozen=True)
class Size:
    """The base's shape and the amount of work; every field can be set on the command line."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    rank: int = 16
    # prompts an update, and to how many `growth` raises them
    prompts: int = 16
    grown: int = 64
    prompt_tokens: int = 64
    reply_tokens: int = 128
    epochs: int = 4
    micro_batch: int = 4
    # prompts that are decoded together
    rollout_batch: int = 16
    # updates a process; the first is not timed
    updates: int = 2

    def __post_init__(self) -> None:
        for key in ("prompts", "grown"):
            if getattr(self, key) % self.micro_batch:
                raise ConfigError(f"{key}={getattr(self, key)} does not split into micro_batch={self.micro_batch}")
        if self.width % self.heads or self.heads % self.kv_heads:
            numbers = f"width={self.width}, heads={self.heads}, kv_heads={self.kv_heads}"
            raise ConfigError(f"{numbers} must divide one another")
        if NATURAL * self.reply_tokens < 2:
            raise ConfigError(f"reply_tokens={self.reply_tokens} is too short for replies that end; at least 5")

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the layers' matrices, without embeddings and adapters."""
        attention = 2 * self.width * self.width * (1 + self.kv_heads / self.heads)
        return round(self.layers * (attention + 3 * self.width * self.inner))

    @property
    def init(self) -> dict[str, Any]:
        """The base's sizes in the words of config.json, as `model.init` takes them."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4 * (self.prompt_tokens + self.reply_tokens),
            "tie_word_embeddings": True,
        }

    def config(self) -> Any:
        from transformers import LlamaConfig

        sizes = {name: value for name, value in self.init.items() if name != "model_type"}
        return LlamaConfig(**sizes, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)


LIGHT = dict(rank=4, prompts=8, grown=32, prompt_tokens=8, reply_tokens=24, epochs=2, micro_batch=2, rollout_batch=8)
SIZES = {
    # inner is a multiple of 64: bitsandbytes cannot repack other shapes for the kernel that stock's reward model uses
    "cpu": Size(layers=8, width=512, inner=1344, heads=8, kv_heads=8, vocabulary=32_000),
    "8b": Size(
        **dict(layers=32, width=4096, inner=14_336, heads=32, kv_heads=8, vocabulary=128_256),
        **dict(prompts=32, grown=128, prompt_tokens=128, rollout_batch=32),
    ),
    "tiny": Size(layers=2, width=64, inner=128, heads=4, kv_heads=2, vocabulary=2_000, updates=1, **LIGHT),
}


@dataclass(frozen=True)
class Workload:
    """A folder with the weights, and the size they were made for; or without those of the base, which are `drawn` at each load."""

    folder: Path
    size: Size
    device: str
    drawn: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Workload":
        stored = json.loads((folder / "workload.json").read_text())
        return cls(folder, Size(**stored["size"]), stored["device"], stored["drawn"])

    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = {f"t{i}": i for i in range(self.size.vocabulary)}
        core = Tokenizer(models.WordLevel(words, unk_token=f"t{FIRST}"))
        special = {"pad_token": f"t{PAD}", "bos_token": f"t{BOS}", "eos_token": f"t{EOS}"}
        return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **special)

    def rows(self, count: int, length: int) -> Any:
        """`count` rows of `length` random ids, the same ones every time."""
        import torch
        from datasets import Dataset

        generator = torch.Generator().manual_seed(count)
        ids = torch.randint(FIRST, self.size.vocabulary, (count, length), generator=generator)
        return Dataset.from_dict({"input_ids": ids.tolist()})

    def load(self, reward: bool = False) -> Any:
        """The base in NF4 with double quantization, computing in bf16; with `reward` as a sequence classifier.

        The LM head gets a bias that makes every token of a reply its EOS with the same probability, and pad impossible:
        reply lengths are then geometric, whoever samples.
        """
        import torch

        model = self._base(reward)
        if reward:
            return model
        head: Any = model.lm_head
        bias = torch.zeros(self.size.vocabulary, dtype=torch.bfloat16, device=head.weight.device)
        bias[PAD] = -1e4
        bias[EOS] = json.loads((self.folder / "workload.json").read_text())["eos_logit"]
        head.bias = torch.nn.Parameter(bias, requires_grad=False)
        return model

    def _base(self, reward: bool) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

        nf4 = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["lm_head", "score"],
        )
        kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
        labels = {"num_labels": 1} if reward else {}
        device = 0 if self.device == "cuda" else "cpu"  # without it bitsandbytes takes a GPU that it sees
        if not self.drawn:
            options: dict[str, Any] = {"dtype": torch.bfloat16, "quantization_config": nf4, "device_map": {"": device}}
            return kind.from_pretrained(self.folder / "base", **options, **labels)
        from rlhf.models.drawn import drawn

        torch.manual_seed(0)
        config = self.size.config()
        config.update(labels)
        model = drawn(kind, config, nf4, dtype=torch.bfloat16, device=device)
        model.get_input_embeddings().weight.data[EOS] = 0
        return model


def make(folder: Path, size: Size, device: str, drawn: bool = False) -> Workload:
    """Writes base, SFT adapter and reward adapter with random weights; both adapters change what the base computes. A base that is
    `drawn` is not written.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import LlamaForCausalLM

    work = Workload(folder, size, device, drawn)
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
        base: Any = work._base(reward=False)
    else:
        torch.manual_seed(0)
        with torch.device(device):
            base = LlamaForCausalLM(size.config())
        base.to(torch.bfloat16)
        with torch.no_grad():
            base.model.embed_tokens.weight[EOS] = 0  # its logit is then the bias alone, whatever came before
        base.save_pretrained(folder / "base")
    stored = {"size": asdict(size), "device": device, "drawn": drawn, "eos_logit": _eos_logit(base, size)}
    (folder / "workload.json").write_text(json.dumps(stored))

    lora = LoraConfig(r=size.rank, lora_alpha=2 * size.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    peft: Any = get_peft_model(base, lora)
    for name in ("sft", "reward"):
        for parameter_name, parameter in peft.named_parameters():
            if ".lora_B." in parameter_name:
                torch.nn.init.normal_(parameter.data, std=0.01)
        peft.save_pretrained(str(folder / name), save_embedding_layers=False)
    # the adapter folder of a sequence classifier: the same layers, and the head beside them
    stored_weights, stored_config = (folder / "reward" / f"adapter_{x}" for x in ("model.safetensors", "config.json"))
    weights = load_file(stored_weights)
    weights["base_model.model.score.weight"] = torch.randn(1, size.width) * (size.width + 1) ** -0.5
    save_file(weights, stored_weights, metadata={"format": "pt"})
    adapter = json.loads(stored_config.read_text()) | {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    stored_config.write_text(json.dumps(adapter))
    return work


def _eos_logit(base: Any, size: Size) -> float:
    """The EOS logit at which replies of `reply_tokens` at most have a mean length of NATURAL times that."""
    import torch

    chance = stopping_chance(size.reply_tokens)
    ids = torch.randint(FIRST, size.vocabulary, (4, size.prompt_tokens), device=base.device)
    with torch.no_grad():
        logits = base(input_ids=ids).logits.float()
    logits[..., [PAD, EOS]] = -torch.inf
    return math.log(chance / (1 - chance)) + float(torch.logsumexp(logits, -1).mean())


def stopping_chance(limit: int) -> float:
    """The p for which min(geometric(p), limit) has the mean NATURAL * limit: (1 - (1 - p)^limit) / p, by bisection."""
    low, high = 1e-9, 1.0
    for _ in range(100):
        p = (low + high) / 2
        low, high = (p, high) if (1 - (1 - p) ** limit) / p > NATURAL * limit else (low, p)
    return low


@dataclass(frozen=True)
class Task:
    """One measurement: who, whether replies end, prompts an update, epochs, updates, sampling seed, our rollout's base."""

    contender: str
    replies: str
    prompts: int
    epochs: int
    updates: int
    seed: int = 1
    rollout_base: Literal["quantized", "dense"] = "quantized"

    def is_repeat_of(self, other: "Task") -> bool:
        return replace(self, seed=other.seed, rollout_base=other.rollout_base) == other

    @property
    def name(self) -> str:
        return f"{self.contender}, {self.replies}, {self.prompts} prompts"
