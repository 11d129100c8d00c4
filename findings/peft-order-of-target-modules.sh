#!/usr/bin/env bash
# peft 0.21.2: adapter_config.json lists `target_modules` in the order of their hashes, which changes with the process. The same adapter saved
# twice gives two files, so the bytes of an adapter's folder say nothing about whether it is the same. Seen: 2 or more orders in 6 processes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
for seed in 1 2 3 4 5 6; do
    PYTHONHASHSEED=$seed venv/bin/python - "$seed" <<'PYTHON'
import sys
from peft import LoraConfig
LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]).save_pretrained(sys.argv[1])
PYTHON
done
orders=$(cat ./*/adapter_config.json | tr -d '\n ' | grep -o '"target_modules":\[[^]]*\]' | sort -u)
echo "$orders"
[ "$(wc -l <<<"$orders")" -ge 2 ]
