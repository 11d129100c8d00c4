#!/usr/bin/env bash
# TRL 1.12.0 with PEFT 0.21.2: RewardTrainer given LoraConfig(target_modules="all-linear") without a task type puts a LoRA on the scalar head and
# saves only that; the random head below it is not saved. With task_type=SEQ_CLS the head itself is trained and saved. No warning.
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
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer
rows = Dataset.from_dict({"chosen": ["w5 w6 w7"] * 8, "rejected": ["w9 w10 w11"] * 8})
saved = {}
for task in (None, "SEQ_CLS"):
    model = LlamaForSequenceClassification.from_pretrained("base", num_labels=1)
    trainer = RewardTrainer(model, args=RewardConfig("out", max_steps=2, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True), train_dataset=rows, processing_class=tokenizer,
                            peft_config=LoraConfig(task_type=task, target_modules="all-linear"))
    trainer.train()
    trainer.save_model(f"saved-{task}")
    saved[task] = sorted(key for key in load_file(f"saved-{task}/adapter_model.safetensors") if "score" in key)
print(saved)
assert all("lora_" in key for key in saved[None]) and saved["SEQ_CLS"] == ["base_model.model.score.weight"]
PYTHON
