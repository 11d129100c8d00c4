#!/usr/bin/env bash
# trl 1.12.0: DPO with `use_weighting=True` (WPO) and the likelihood of the chosen reply among its losses (`loss_type=["sigmoid", "sft"]`), each of
# which works alone, ends in a RuntimeError in the first step: the mean loss is expanded to the rows and then multiplied in place.
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
from trl import DPOConfig, DPOTrainer
words = {word: number for number, word in enumerate(["<pad>", "<eos>", "a", "b", "c"])}
raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
rows = Dataset.from_dict({"prompt": ["a b "] * 8, "chosen": ["a"] * 8, "rejected": ["c"] * 8})
LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained("base")
def run(**options):
    args = DPOConfig("out", max_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **options)
    DPOTrainer("base", args=args, train_dataset=rows, processing_class=tokenizer).train()
run(use_weighting=True)
run(loss_type=["sigmoid", "sft"])
try:
    run(use_weighting=True, loss_type=["sigmoid", "sft"])
except RuntimeError as error:
    print("both:", error)
else:
    raise SystemExit("it trains now")
PYTHON
