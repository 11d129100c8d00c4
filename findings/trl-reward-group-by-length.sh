#!/usr/bin/env bash
# trl 1.12.0, transformers 5.23.0: `train_sampling_strategy="group_by_length"`, a field of every trainer's config, ends in a ValueError for
# RewardTrainer and DPOTrainer: the sampler looks for `input_ids`, and rows of pairs have none of that name.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.12.0 datasets==5.2.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import os, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
words = {word: number for number, word in enumerate(["<pad>", "<eos>", "a", "b", "c"])}
raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
sizes = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0, num_labels=1)
rows = Dataset.from_dict({"prompt": ["a"] * 16, "chosen": ["b c"] * 16, "rejected": ["c"] * 16})
common = dict(max_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
def run(kind, **options):
    if kind == "reward":
        return RewardTrainer(LlamaForSequenceClassification(sizes), RewardConfig("out", **common, **options), train_dataset=rows, processing_class=tokenizer).train()
    return DPOTrainer(LlamaForCausalLM(sizes), LlamaForCausalLM(sizes), DPOConfig("out", **common, **options), train_dataset=rows, processing_class=tokenizer).train()
for kind in ("reward", "dpo"):
    run(kind)
    try:
        run(kind, train_sampling_strategy="group_by_length")
    except ValueError as error:
        print(f"{kind}:", error)
    else:
        raise SystemExit(f"{kind} trains now")
PYTHON
