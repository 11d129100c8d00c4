"""What transformers makes of an exported folder in a process without this package; asked and answering as llama_cpp.py does."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(asked: dict) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(asked["file"])
    model = AutoModelForCausalLM.from_pretrained(asked["file"], dtype=torch.float32)
    replies = []
    for prompt in asked["prompts"]:
        ids = torch.tensor([prompt])
        settings = {
            "do_sample": False,
            "max_new_tokens": asked["limit"],
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        said = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        tokens = said.sequences[0, len(prompt) :].tolist()
        logprobs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(said.logits, tokens, strict=True)]
        ends = model.generation_config.eos_token_id
        ended = tokens[-1] in (ends if isinstance(ends, list) else [ends])
        replies.append({"tokens": tokens, "logprobs": logprobs, "ended": ended})
    assert "rlhf" not in sys.modules
    return {
        "tokens": tokenizer(asked["texts"])["input_ids"],
        "rendered": [
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            for turns in asked["dialogues"]
        ],
        "replies": replies,
    }


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
