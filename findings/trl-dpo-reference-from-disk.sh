#!/usr/bin/env bash
# TRL 1.12.0: DPOTrainer without ref_model and without PEFT loads the reference from the folder that the model came from, not from the weights
# that it is given. A model that was changed after loading starts away from its reference: the first loss is not ln 2. Seen: 0.74.
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

from datasets import Dataset
from trl import DPOConfig, DPOTrainer
model = AutoModelForCausalLM.from_pretrained("base")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
rows = Dataset.from_dict({"prompt": ["w5 w6"] * 8, "chosen": ["w7"] * 8, "rejected": ["w9 w10"] * 8})
args = DPOConfig("out", max_steps=1, logging_steps=1, learning_rate=1e-9, gradient_checkpointing=False, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
trainer.train()
loss = trainer.state.log_history[0]["loss"]
print("first loss:", loss, "ln 2 = 0.6931")
assert abs(loss - 0.6931) > 0.02
PYTHON
