#!/usr/bin/env bash
# transformers 4.57.6 loads what transformers 5.23.0 saved without a word and computes something else: 5 writes the base of the rotation as
# rope_parameters.rope_theta alone, where 4 reads rope_theta and takes 10000 if it is not there. Seen: 100000.0 saved, 10000.0 loaded, logits
# off by 11.3 where none is above 9; with rope_theta beside rope_parameters in config.json they are the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for version in 5.23.0 4.57.6; do
  python3 -m venv "$version"
  "$version/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 "transformers==$version"
done
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1
5.23.0/bin/python - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                     initializer_range=0.3, rope_theta=100000.0)).eval()
model.save_pretrained("saved")
torch.save(model(input_ids=torch.arange(64)[None]).logits.detach(), "logits.pt")
PYTHON
4.57.6/bin/python - <<'PYTHON' 2>&1 | tee said
import json, torch
from transformers import AutoModelForCausalLM
def loaded():
    model = AutoModelForCausalLM.from_pretrained("saved").eval()
    with torch.no_grad():
        return model.config.rope_theta, float((model(input_ids=torch.arange(64)[None]).logits - expected).abs().max())
expected = torch.load("logits.pt")
theta, off = loaded()
print(f"saved: 100000.0, loaded: {theta}; logits off by {off:.1f} of {float(expected.abs().max()):.0f}")
config = json.load(open("saved/config.json"))
assert "rope_theta" not in config and theta == 10000.0 and off > 1
json.dump(config | {"rope_theta": config["rope_parameters"]["rope_theta"]}, open("saved/config.json", "w"))
theta, off = loaded()
print(f"with rope_theta written: {theta}; off by {off:.1g}")
assert theta == 100000.0 and off < 1e-3
PYTHON
! grep -i warn said
