"""What llama.cpp makes of a GGUF file: run as a program, asked in JSON on its input, so that nothing else is loaded beside it.

{"file": ..., "texts": [...], "dialogues": [...], "prompts": [[ids], ...], "limit": 8} gives the tokens of each text, the text that the
chat template makes of each dialogue, and each prompt's greedy reply: tokens, and the log-probability of each.
"""

import json
import sys
import urllib.request

import xllamacpp


def main(asked: dict) -> dict:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = (
        asked["file"],
        512,
        1,
        False,
        -1,
    )
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.cpuparams.n_threads = 1
    server = xllamacpp.Server(settings)

    def post(path: str, **body):
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), head)
        return json.load(urllib.request.urlopen(request))

    replies = []
    for prompt in asked["prompts"]:
        given = {"prompt": prompt, "n_predict": asked["limit"], "temperature": 0, "n_probs": 1, "return_tokens": True}
        reply = post("/completion", cache_prompt=False, **given)
        probabilities = [one["logprob"] for one in reply["completion_probabilities"]]
        replies.append({"tokens": reply["tokens"], "logprobs": probabilities, "ended": reply["stop_type"] == "eos"})
    return {
        "tokens": [
            post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"] for text in asked["texts"]
        ],
        "rendered": [post("/apply-template", messages=turns)["prompt"] for turns in asked["dialogues"]],
        "replies": replies,
    }


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
