"""A tiny base model with an SFT adapter and a reward adapter, saved the way the stages save them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.shared import Roles, shared_roles
from rlhf.ppo.assembly import assemble
from rlhf.ppo.trainer import PPOConfig, PPOTrainer

VOCABULARY = 96
KINDS = ["lora on nf4", "full"]  # of `Workshop.kind`; the fast tests run `lora` too
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1, **options)


def placed(quantized: bool, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told: the type of plain weights, and NF4 with double quantization, heads left out."""
    nf4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    skipped = {"llm_int8_skip_modules": ["lm_head", "score"], "bnb_4bit_compute_dtype": dtype}
    return {"dtype": dtype} | ({"quantization_config": BitsAndBytesConfig(**nf4, **skipped)} if quantized else {})


def shake(model: Any, seed: int) -> None:
    """Gives every LoRA-B weights, as training would: a zero B would make all adapters the same function."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def words(*special: str, shift: int = 0, **tokens: str) -> Any:
    """A tokenizer of the words w4..w95, with ids that are not the policy's."""
    listed = [*special, *(f"w{i}" for i in range(95 - shift, 3, -1)), *(f"w{i}" for i in range(95, 95 - shift, -1))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token=special[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **tokens)


@dataclass
class Workshop:
    """Where the tiny base, its adapters and its tokenizer lie."""

    base: Path
    sft: Path
    reward: Path
    tokenizer: Any

    def load(self, quantized: bool = False, dtype: torch.dtype = torch.float32) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.base, **placed(quantized, dtype))
        plain_4bit_kernels(model)
        return model

    lora, shake, words = staticmethod(lora), staticmethod(shake), staticmethod(words)

    def load_reward(self, path: Path | None = None, quantized: bool = False) -> Any:
        torch.manual_seed(3)
        options = placed(quantized, torch.float32)
        model = AutoModelForSequenceClassification.from_pretrained(path or self.base, num_labels=1, **options)
        plain_4bit_kernels(model)
        return model

    def roles(
        self, quantized: bool = False, dtype: torch.dtype = torch.float32, reward: Path | None = None, **options: Any
    ) -> Any:
        base = self.load(quantized, dtype)
        return shared_roles(base, self.tokenizer, self.sft, reward or self.reward, **options)

    def kind(self, kind: str) -> Any:
        """Four roles: `lora` on an fp32 base, `lora on nf4`, or `full` models of their own, all weights trained."""
        if kind != "full":
            return self.roles(quantized=kind == "lora on nf4")
        models = (self.load(), None, self.load_reward(), self.load_reward())
        policy, reference, (reward,), value = assemble(*models, None, torch.device("cpu"), VOCABULARY)
        return Roles(policy, reference, reward, value, peft=None)


def build(root: Path) -> Workshop:
    """The workshop under `root`: a Llama of two layers, an SFT adapter and a reward adapter, both with shaken weights."""
    torch.set_num_threads(1)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<end>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w4"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    made = Workshop(root / "base", root / "sft", root / "reward", tokenizer)
    tokenizer.save_pretrained(root / "base")
    policy = get_peft_model(made.load(), lora(task_type="CAUSAL_LM"))
    shake(policy, 1)
    policy.save_pretrained(made.sft)
    reward = get_peft_model(made.load_reward(), lora(task_type="SEQ_CLS"))
    shake(reward, 2)
    reward.save_pretrained(made.reward)
    tokenizer.save_pretrained(made.reward)
    return made


def reward_models(workshop: Workshop, root: Path) -> Path:
    """More reward models: a second adapter, a BERT with three labels, a chat model with one label, one of full weights."""
    second = get_peft_model(workshop.load_reward(), workshop.lora(task_type="SEQ_CLS"))
    workshop.shake(second, 4)
    second.base_model.model.score.modules_to_save["default"].weight.data.mul_(-2)
    second.save_pretrained(root / "second")
    workshop.tokenizer.save_pretrained(root / "second")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    labels = {"id2label": {0: "negative", 1: "neutral", 2: "positive"}, "initializer_range": 0.5}
    bert = BertConfig(vocab_size=97, max_position_embeddings=24, **sizes, **labels)
    BertForSequenceClassification(bert).save_pretrained(root / "bert")
    workshop.words("[UNK]", "[PAD]", unk_token="[UNK]", pad_token="[PAD]").save_pretrained(root / "bert")
    chat = LlamaConfig(vocab_size=97, num_labels=1, pad_token_id=1, max_position_embeddings=64, **sizes)
    LlamaForSequenceClassification(chat).save_pretrained(root / "chat")
    reader = workshop.words("[UNK]", "[PAD]", "<user>", "<assistant>", shift=9, unk_token="[UNK]", pad_token="[PAD]")
    reader.chat_template = TEMPLATE
    reader.save_pretrained(root / "chat")
    workshop.load_reward().save_pretrained(root / "full")
    workshop.tokenizer.save_pretrained(root / "full")
    return root


def draw_prompts() -> Dataset:
    """Twelve prompts of 3 to 9 tokens, with a column besides."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(3, 10, (12,), generator=generator).tolist()
    rows = [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return Dataset.from_dict({"input_ids": rows, "answer": [str(i) for i in range(12)]})


# of both PPO trainers, ours and stock's: a run on the CPU that writes nothing besides what a test asks for
QUIET: dict[str, Any] = {
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
}


def trainer(workshop: Workshop, roles: Any, dataset: Any, folder: Path, **options: Any) -> Any:
    """PPO with four updates of 8 prompts, if the options do not say otherwise."""
    defaults = QUIET | {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "total_episodes": 32,
        "response_length": 10,
        "temperature": 0.9,
        "learning_rate": 1e-3,
        "seed": 1,
    }
    more = {name: options.pop(name, None) for name in ("eval_dataset", "callbacks")}
    args = PPOConfig(**defaults | options)
    return PPOTrainer(
        args, workshop.tokenizer, roles.policy, roles.reference, roles.reward, dataset, roles.value, **more
    )
