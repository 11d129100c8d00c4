#!/usr/bin/env bash
# TRL 1.12.0: SFTTrainer casts what is trainable on a 4-bit base to bf16 in its constructor, with bf16=False too and with an adapter that was made
# in fp32. Updates below 1/256 of a weight are lost from then on. Seen on the CPU: fp32 before, bf16 after.
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

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
core = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 64)}, unk_token="w3"))
core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"

from transformers import BitsAndBytesConfig
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer
model = get_peft_model(AutoModelForCausalLM.from_pretrained("base", quantization_config=nf4), LoraConfig(target_modules=["q_proj"]))
types = lambda m: {str(p.dtype) for p in m.parameters() if p.requires_grad}
before = types(model)
rows = Dataset.from_dict({"input_ids": [[1, 5, 6, 2]] * 8})
trainer = SFTTrainer(model, SFTConfig("out", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True), train_dataset=rows, processing_class=tokenizer)
print("before:", before, "after:", types(trainer.model))
assert before == {"torch.float32"} and types(trainer.model) == {"torch.bfloat16"}
PYTHON
