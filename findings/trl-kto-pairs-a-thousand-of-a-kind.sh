#!/usr/bin/env bash
# trl 1.12.0: KTO takes pairs, and trains them a thousand replies of one kind at a time. `unpair_preference_dataset` maps a thousand pairs at once into
# their chosen replies and then their rejected ones, and KTOTrainer takes rows as they stand (`train_sampling_strategy="sequential"`, all that it
# allows with KL), in each epoch. No batch holds both kinds: for up to a thousand rows all replies are raised, then all are lowered.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 trl==1.12.0 datasets==5.2.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import os, warnings
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
from itertools import groupby
import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer
datasets.disable_progress_bars()
words = {word: number for number, word in enumerate(["<pad>", "<eos>", "a", "b", "c"])}
raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
rows = datasets.Dataset.from_dict({"prompt": ["a b "] * 1500, "chosen": ["a"] * 1500, "rejected": ["c"] * 1500})
LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained("base")
def built(**options):
    args = KTOConfig("out", per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False, **options)
    return KTOTrainer("base", args=args, train_dataset=rows, processing_class=tokenizer)
trainer = built()
batches = [[bool(label) for label in batch["label"]] for batch in trainer.get_train_dataloader()]
runs = [(kind, len(list(same))) for kind, same in groupby(label for batch in batches for label in batch)]
print("thumbs in the order of training:", ", ".join(f"{count} {'up' if kind else 'down'}" for kind, count in runs))
assert runs == [(True, 1000), (False, 1000), (True, 500), (False, 500)], "pairs are trained in another order now"
assert not [batch for batch in batches if len(set(batch)) > 1], "a batch holds both kinds now"
try:
    built(train_sampling_strategy="random")
except ValueError as error:
    print("random:", str(error)[:120])
else:
    raise SystemExit("rows may be shuffled now")
PYTHON
