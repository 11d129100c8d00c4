#!/usr/bin/env bash
# trl 1.12.0, peft 0.21.0: DPO of an adapter with `torch_compile=True` ends in a TypeError in the first step, whatever the backend: the reference
# is the model with its adapter off, and the compiled model is not seen to have one. Without compiling it trains, and so does it compiled
# with `precompute_ref_log_probs=True`, which asks the reference before the model is compiled.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.12.0 datasets==5.2.0 accelerate==1.15.0 peft==0.21.0
venv/bin/python - <<'PYTHON'
import os, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
from datasets import Dataset
from peft import LoraConfig
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
    DPOTrainer("base", args=args, train_dataset=rows, processing_class=tokenizer, peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).train()
run()
run(torch_compile=True, torch_compile_backend="eager", precompute_ref_log_probs=True)
try:
    run(torch_compile=True, torch_compile_backend="eager")
except TypeError as error:
    print("compiled:", error)
else:
    raise SystemExit("it trains now")
PYTHON
