#!/usr/bin/env bash
# transformers 5.23.0: without flash attention two samples packed into one row are kept apart by their position ids only if the call says
# use_cache=False and gives no attention mask. With the default cache, or with a mask of ones, the second sample sees the first.
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

model = AutoModelForCausalLM.from_pretrained("base").eval()
second = torch.tensor([[5, 6, 7, 8]])
packed = torch.cat([torch.tensor([[20, 21, 22, 23]]), second], 1)
positions = torch.tensor([[0, 1, 2, 3] * 2])
with torch.no_grad():
    alone = model(input_ids=second).logits[0]
    away = lambda **options: float((model(input_ids=packed, position_ids=positions, **options).logits[0, 4:] - alone).abs().max())
    apart, cached, masked = away(use_cache=False), away(), away(use_cache=False, attention_mask=torch.ones_like(packed))
print("distance from the sample alone: use_cache=False", apart, "default", cached, "a mask of ones", masked)
assert apart < 1e-4 and cached > 0.1 and masked > 0.1
PYTHON
