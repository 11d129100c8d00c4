#!/usr/bin/env bash
# PEFT 0.21.2: of several target_modules those that the model does not have are left out without a word, as long as one is found; alone they are
# refused. A typo in a list therefore trains a smaller adapter. Seen: q_proj and qkv_projj asked for, q_proj adapted, no warning.
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
def adapted(*modules):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(target_modules=list(modules)))
    return {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith("lora_A")}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    some = adapted("q_proj", "qkv_projj")
try:
    alone = str(adapted("qkv_projj"))
except Exception as error:
    alone = type(error).__name__
print("adapted:", some, "warnings that name it:", [w for w in told if "projj" in str(w.message)], "alone:", alone)
assert some == {"q_proj"} and not [w for w in told if "projj" in str(w.message)] and alone == "NoMatchingPeftModuleError"
PYTHON
