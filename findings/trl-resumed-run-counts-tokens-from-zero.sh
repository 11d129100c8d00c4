#!/usr/bin/env bash
# trl 1.12.0, transformers 5.23.0: `num_tokens`, which the trainers log as the tokens trained on so far, begins at 0 again when a run is
# resumed. Seen: 4 steps in one go log 40 at the end; stopped after 2 and resumed, the same 4 steps log 20.
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
rows = Dataset.from_dict({"text": ["a b c a"] * 64})
def run(folder, steps, resume):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    args = SFTConfig(folder, max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
    args.max_steps = 4 if resume or folder == "whole" else 2
    trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    return [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry][-1]
whole = run("whole", 4, False)
run("broken", 2, False)
resumed = run("broken", 4, True)
print("num_tokens after 4 steps:", whole, "in one go,", resumed, "when resumed after 2")
assert resumed == whole / 2
PYTHON
