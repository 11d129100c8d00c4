#!/usr/bin/env bash
# transformers 5.23.0: save_total_limit=1 with load_best_model_at_end=True leaves only the best checkpoint when training ends; the last one is
# deleted, so the run cannot be gone on with from where it stopped. Seen: of six checkpoints, number 2 is left.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2 trl==1.12.0 datasets==5.2.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import os, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.1)).save_pretrained("base")

from datasets import Dataset
from transformers import Trainer, TrainingArguments
train = Dataset.from_dict({"input_ids": [[1, 5, 6, 2]] * 64, "labels": [[1, 5, 6, 2]] * 64})
held_out = Dataset.from_dict({"input_ids": [[1, 9, 10, 2]] * 4, "labels": [[1, 9, 10, 2]] * 4})
args = TrainingArguments("out", learning_rate=1e-2, max_steps=6, save_steps=1, eval_steps=1, eval_strategy="steps", save_total_limit=1,
                         load_best_model_at_end=True, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
trainer = Trainer(AutoModelForCausalLM.from_pretrained("base"), args, train_dataset=train, eval_dataset=held_out)
trainer.train()
left = [name for name in os.listdir("out") if name.startswith("checkpoint-")]
print("left:", left, "best:", trainer.state.best_model_checkpoint)
assert len(left) == 1 and left != ["checkpoint-6"]
PYTHON
