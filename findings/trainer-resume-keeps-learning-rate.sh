#!/usr/bin/env bash
# transformers 5.23.0: a Trainer that resumes a checkpoint goes on with the learning rate and weight decay stored in it, whatever the new
# arguments say, without a warning. Seen: 5e-05 and 0.1 asked for, 0.001 and 0.0 used.
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
rows = Dataset.from_dict({"input_ids": [[1, 5, 6, 2]] * 64, "labels": [[1, 5, 6, 2]] * 64})
def run(steps, **options):
    args = TrainingArguments("out", max_steps=steps, save_steps=4, lr_scheduler_type="constant", logging_steps=1, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **options)
    trainer = Trainer(AutoModelForCausalLM.from_pretrained("base"), args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=steps > 4)
    return trainer
run(4, learning_rate=1e-3, weight_decay=0.0)
later = run(8, learning_rate=5e-5, weight_decay=0.1)
rate, decay = later.state.log_history[-2]["learning_rate"], {group["weight_decay"] for group in later.optimizer.param_groups}
print("asked for 5e-05 and 0.1; used", rate, decay)
assert rate == 1e-3 and decay == {0.0}
PYTHON
