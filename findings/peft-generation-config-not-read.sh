#!/usr/bin/env bash
# PEFT 0.21.2: a generation_config.json saved beside an adapter is not read when the adapter is loaded. Whoever saves there that replies end at two
# tokens gets a model that stops only where its base does. Seen: [2, 7] saved, 2 loaded.
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

from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import GenerationConfig
base = os.path.abspath("base")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
model.save_pretrained("adapter")
GenerationConfig(eos_token_id=[2, 7]).save_pretrained("adapter")
loaded = AutoPeftModelForCausalLM.from_pretrained("adapter").generation_config.eos_token_id
print("saved: [2, 7], loaded:", loaded)
assert loaded == 2
PYTHON
