"""Evaluation during training: replies to held-out prompts, their score, their KL from the reference, and the texts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rlhf.generation.batches import lay_out, reply_mask
from rlhf.generation.logprobs import kl_of_replies
from rlhf.generation.sampling import stream
from rlhf.ppo.loop import Loop, prompt_of
from rlhf.ppo.update import require_finite


@torch.no_grad()
def evaluate(
    loop: Loop, rows: Sequence[dict[str, Any]], tokenizer: Any, update: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and one sample a row. The random numbers are the same every time, so that a difference between two
    evaluations is the policy's.

    Scores are the scorer's own, without penalties, so that runs with different penalties can be compared; the KL is
    that at `eval_temperature`, or 1 for greedy replies. Raises NonFinite, naming `update`, when a score or KL is not a
    number.
    """
    args, policy = loop.args, loop.policy
    forward = replace(loop.forward, temperature=args.eval_temperature or 1.0)
    prompts = [prompt_of(row) for row in rows]
    replies = loop.reply(prompts, args.eval_temperature, stream(args.seed, "evaluation", 0))
    scores = loop.scorer(prompts, replies.tokens, rows)
    batches = lay_out(prompts, replies.tokens, loop.micro_batch_size, policy.filler(loop.pad_id), policy.device)
    k1, k3 = kl_of_replies(forward, policy, loop.reference, batches, reply_mask(replies.tokens, policy.device))
    require_finite(update, {"eval_objective/scores": scores, "eval_objective/kl": k1})
    lengths = [len(reply) for reply in replies.tokens]
    metrics = {
        "eval_objective/scores": float(scores.mean()),
        "eval_objective/kl": float(k1.mean()),
        "eval_objective/kl_k3": float(k3.mean()),
        "eval_objective/length": float(torch.tensor(lengths, dtype=torch.float).mean()),
        "eval_objective/eos_rate": sum(replies.ended) / len(rows),
    }
    columns = {
        "prompt": [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts],
        "reply": [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies.tokens],
        "reward": scores.tolist(),
        "kl": k1.tolist(),
        "length": lengths,
        "ended": replies.ended,
    }
    samples = [dict(zip(columns, sample, strict=True)) for sample in zip(*columns.values(), strict=True)]
    for sample, row in zip(samples, rows, strict=True):
        if "facts" in row:  # what an annotator judges by
            sample["facts"] = json.loads(row["facts"])
    return metrics, samples
