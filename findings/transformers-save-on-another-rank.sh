#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): a model that is saved into a folder of its own by each of two processes is written by the first alone. The
# second, with is_main_process=True as is the default, gets its folder without a file in it, and no word; its tokenizer and its config, saved by
# their own save_pretrained, are written. A save of what only one rank has, or into a folder that no other sees, leaves nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
cat > save.py <<'PYTHON'
import os, pathlib, torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM
dist.init_process_group("gloo")
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
folder = pathlib.Path(f"rank-{dist.get_rank()}")
model.save_pretrained(folder, is_main_process=True)
model.config.save_pretrained(f"config-{dist.get_rank()}")
dist.barrier()
if dist.get_rank() == 0:
    left = {one.name: sorted(file.name for file in one.iterdir()) for one in sorted(pathlib.Path().glob("*-[01]"))}
    print(left)
    assert "model.safetensors" in left["rank-0"] and left["rank-1"] == []
    assert left["config-0"] == left["config-1"] == ["config.json"]
dist.destroy_process_group()
PYTHON
venv/bin/python -m torch.distributed.run --nproc-per-node 2 --master-port 29711 save.py
