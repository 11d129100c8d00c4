#!/usr/bin/env bash
# trl 1.12.0, transformers 5.23.0: `label_smoothing_factor`, a field of SFTConfig that is accepted, ends in an AttributeError in the first step:
# the Trainer's label smoother takes the labels away, and the loss of TRL then asks the model's output for what only a model with labels gives.
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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
words = {word: number for number, word in enumerate(["<pad>", "<eos>", "a", "b", "c"])}
raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
def run(**options):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    args = SFTConfig("out", max_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **options)
    SFTTrainer(model, args, train_dataset=Dataset.from_dict({"text": ["a b c a"] * 16}), processing_class=tokenizer).train()
run()
try:
    run(label_smoothing_factor=0.1)
except AttributeError as error:
    print("label_smoothing_factor=0.1:", error)
else:
    raise SystemExit("it trains now")
PYTHON
