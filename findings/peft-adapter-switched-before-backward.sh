#!/usr/bin/env bash
# PEFT 0.21.2 with torch 2.13.0: under gradient checkpointing a layer is recomputed in backward with the adapter that is active then. An adapter
# switched between forward and backward gets a wrong gradient, without a word. Seen: norm 1.74 becomes 2.19.
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

from peft import LoraConfig, get_peft_model
config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
def norm(switch):
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), config, adapter_name="a")
    model.add_adapter("b", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    model.set_adapter("a")
    ids = torch.arange(5, 15)[None]
    loss = model(input_ids=ids, labels=ids).loss
    if switch:
        model.set_adapter("b")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".a." in name or ".b." in name)
    loss.backward()
    return sum(float(p.grad.norm() ** 2) for n, p in model.named_parameters() if ".a." in n and p.grad is not None) ** 0.5
plain, switched = norm(False), norm(True)
print("gradient of adapter a:", plain, "after a switch to b before backward:", switched)
assert abs(switched / plain - 1) > 0.05
PYTHON
