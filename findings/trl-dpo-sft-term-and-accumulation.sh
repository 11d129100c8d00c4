#!/usr/bin/env bash
# TRL 1.12.0: DPO with loss_type=[sigmoid, sft] on replies of different lengths makes another update for each split of the same eight rows into
# micro-batches; with [sigmoid] alone it does not. Seen (SGD, one step): 4 x 2 differs from 8 x 1 by 18%, 2 x 4 by 28%.
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

import random
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
random.seed(0)
words = lambda count: " ".join(f"w{random.randint(4, 60)}" for _ in range(count))
sides = {side: [words(random.randint(1, 12)) for _ in range(8)] for side in ("chosen", "rejected")}
rows = Dataset.from_dict({"prompt": [words(3) for _ in range(8)]} | sides)
def update(size, passes, losses):
    model, reference = (AutoModelForCausalLM.from_pretrained("base") for _ in range(2))
    args = DPOConfig("out", max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=passes, loss_type=losses,
                     loss_weights=[1.0] * len(losses), optim="sgd", learning_rate=0.1, max_grad_norm=0, lr_scheduler_type="constant",
                     gradient_checkpointing=False, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
    trainer = DPOTrainer(model, reference, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return torch.cat([(p - q).flatten() for p, q in zip(trainer.model.parameters(), reference.parameters())]).detach()
def spread(losses):
    whole, *split = (update(size, 8 // size, losses) for size in (8, 4, 2))
    return [float((other - whole).norm() / whole.norm()) for other in split]
plain, mixed = spread(["sigmoid"]), spread(["sigmoid", "sft"])
print("distance from 8 x 1 of 4 x 2 and 2 x 4: sigmoid", plain, "sigmoid and sft", mixed)
assert max(plain) < 1e-3 and min(mixed) > 0.05
PYTHON
