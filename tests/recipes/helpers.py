"""Random models of the recipes' architectures with a few thousand weights, and one byte-level tokenizer with all their tokens."""

from pathlib import Path
from typing import Any

# by the beginning of the hub id; what the recipes' weights are
ARCHITECTURES = {
    "mistralai/Mistral-7B": "mistral",
    "EleutherAI/pythia": "gpt_neox",
    "Qwen/Qwen2": "qwen2",
    "huggyllama/llama": "llama",
    "meta-llama/Llama-3.1": "llama",
    "HuggingFaceTB/SmolLM2": "llama",
    "recipes/reviews/fetched/model": "llama",
    "gpt2-large": "gpt2",
    "siebert/sentiment-roberta-large": "roberta",
}
SPECIAL = ("<unk>", "<pad>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|padding|>", "<|end_of_text|>")
SPECIAL += ("<|finetune_right_pad_id|>", "ĠSolidGoldMagikarp")
OWN_TEMPLATE = (  # a tokenizer's own, as Qwen2's: with a system turn that nobody wrote
    "{%- for message in messages -%}{%- if loop.first and message['role'] != 'system' -%}"
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>{{ '\n' }}{%- endif -%}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["What is the best way to say this? It is a good answer."], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=OWN_TEMPLATE,
    )


def save(kind: str, folder: Path) -> Path:
    """A model of architecture `kind` under `folder/<kind>`, made once; the classifier has the classes of sentiment."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    path = folder / kind
    if path.is_dir():
        return path
    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 4096, "vocab_size": len(words), "bos_token_id": None, "pad_token_id": 1}
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 640, "vocab_size": len(words)}
    if kind in ("mistral", "qwen2", "llama"):
        sizes["num_key_value_heads"] = 1
    if kind == "roberta":
        sizes |= {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "max_position_embeddings": 600}
    config = AutoConfig.for_model(kind, **sizes)
    model = (AutoModelForSequenceClassification if kind == "roberta" else AutoModelForCausalLM).from_config(config)
    model.save_pretrained(str(path))
    words.model_max_length = 512
    words.save_pretrained(str(path))
    return path


def stand_in(name: str, folder: Path) -> Path:
    """The tiny model that takes the place of hub id `name`."""
    return save(next(kind for prefix, kind in ARCHITECTURES.items() if name.startswith(prefix)), folder)
