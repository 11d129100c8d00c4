#!/usr/bin/env bash
# transformers 5.23.0: a Trainer that resumes from the checkpoint of its last step (`max_steps`, in the middle of an epoch) trains one step more.
# Seen: max_steps=4, resumed at 4, ends at global step 5 with other weights than those of the checkpoint.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import os, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
rows = Dataset.from_dict({"input_ids": [[1, 5, 6, 2]] * 64, "labels": [[1, 5, 6, 2]] * 64})
def run(resume):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    args = TrainingArguments("out", max_steps=4, save_steps=4, lr_scheduler_type="constant", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.global_step, model.lm_head.weight.detach().clone()
(first, trained), (second, resumed) = run(False), run(True)
print("steps:", first, "then", second, "  weights unchanged:", torch.equal(trained, resumed))
assert (first, second) == (4, 5) and not torch.equal(trained, resumed)
PYTHON
