"""A run with a tokenizer that tells pre-tokenizers apart, and what two other programs are asked about it."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.doors import REPO

TURNS, END, PAD = ("<|ask|>", "<|say|>", "<|rule|>"), "<|fin|>", "<|fill|>"  # names that no other program knows
TEMPLATE = (
    "{%- for message in messages -%}{{ {'user': '<|ask|>', 'assistant': '<|say|>', 'system': '<|rule|>'}[message['role']] }}"
    "{{ message['content'] }}<|fin|>{%- endfor -%}{%- if add_generation_prompt -%}<|say|>{%- endif -%}"
)
PIECES = [
    "it's",
    "WE'LL",
    "2026",
    " 3.14",
    "1,000,000",
    "naïve",
    "東京",
    "🙂",
    "  ",
    "\n\n",
    "\t",
    "e.g.",
    "(see",
    "foo_bar()",
    "x**2",
    "ﬁ",
]
PIECES += [
    "Straße",
    "don't",
    "'quoted'",
    "\r\n",
    "…",
    "—",
    "a1b2",
    "http://x.y/z?q=1",
    "ÀÉ",
    "й",
    "\u00a0",
    *TURNS,
    END,
]


def texts(count: int) -> list[str]:
    """Texts with digits, contractions, scripts, spaces and turn tokens in every neighbourhood."""
    draw, words = random.Random(0), (REPO / "LICENSE").read_text().split()
    return [
        "".join(draw.choice(["", " "]) + draw.choice([*PIECES, *draw.choices(words, k=30)]) for _ in range(9))
        for _ in range(count)
    ]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=[PAD, END, *TURNS], **options)
    numbers = [f"{year} {year // 7}.{year} {year},{year:03}" for year in range(3000)]
    core.train_from_iterator([(REPO / "LICENSE").read_text(), *numbers, *PIECES * 20], trainer)
    own = {"eos_token": END, "pad_token": PAD, "chat_template": TEMPLATE, "additional_special_tokens": list(TURNS)}
    return PreTrainedTokenizerFast(tokenizer_object=core, **own)


def base(folder: Path) -> Path:
    """A Llama of two layers with fewer key heads than query heads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes, vocab_size=len(words) + 3, max_position_embeddings=512, initializer_range=0.08, rope_theta=50000.0
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def ask(program: str, file: Path, prompts: list[list[int]], limit: int = 12) -> dict[str, Any]:
    """What tests/export/<program>.py says about a file or folder, from another working directory."""
    dialogues = [
        [{"role": "user", "content": "Is it 2026?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c  d"}],
    ]  # fmt: skip
    asked = {"file": str(file), "texts": texts(300), "dialogues": dialogues, "prompts": prompts, "limit": limit}
    script = Path(__file__).with_name(f"{program}.py")
    options = {"cwd": "/", "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-I", str(script)], input=json.dumps(asked), **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index('{"tokens"') :])
