"""Evaluation: replies to held-out prompts, their score, their KL from the reference, and the texts themselves."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from rlhf.generation.batches import lay_out, reply_mask
from rlhf.generation.logprobs import Forward, kl_estimates
from rlhf.generation.sampling import sample_replies
from rlhf.models.roles import Role
from rlhf.ppo.loop import prompt_of
from rlhf.ppo.update import require_finite
from rlhf.rewards.scorers import Scorer


@torch.no_grad()
def evaluate_policy(
    forward: Forward,
    policy: Role,
    reference: Role,
    scorer: Scorer,
    rows: Sequence[dict[str, Any]],
    tokenizer: Any,
    *,
    batch_size: int,
    update: int,
    **sampling: Any,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and one sample a prompt; `forward` has the temperature at which the KL is measured.

    `sampling` is what `sample_replies` takes. Scores are the scorer's own, without penalties, so that runs with
    different penalties can be compared. Raises NonFinite, naming `update`, when a score or KL is not a number.
    """
    prompts = [prompt_of(row) for row in rows]
    with forward.autocast():
        replies = sample_replies(policy, prompts, **sampling)
    scores = scorer(prompts, replies.tokens, rows)
    mask = reply_mask(replies.tokens, policy.device)
    ours, theirs = torch.zeros(mask.shape, device=mask.device), torch.zeros(mask.shape, device=mask.device)
    batches = lay_out(prompts, replies.tokens, batch_size, sampling["pad_id"], policy.device)
    for role, into in ((policy, ours), (reference, theirs)):
        with role.active():
            for batch in batches:
                batch.put(into, forward.logprobs(role, batch))
    k1, k3 = (torch.where(mask, kl, 0).sum(1).cpu() for kl in kl_estimates(ours, theirs))
    require_finite(update, eval_objective__scores=scores, eval_objective__kl=k1)
    lengths = torch.tensor([float(len(t)) for t in replies.tokens])
    metrics = {
        "eval_objective/scores": float(scores.mean()),
        "eval_objective/kl": float(k1.mean()),
        "eval_objective/kl_k3": float(k3.mean()),
        "eval_objective/length": float(lengths.mean()),
        "eval_objective/eos_rate": sum(replies.ended) / len(rows),
    }
    samples = [
        {
            "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
            "reply": tokenizer.decode(reply, skip_special_tokens=True),
            "reward": float(scores[i]),
            "kl": float(k1[i]),
            "length": len(reply),
            "ended": replies.ended[i],
            # what an annotator judges by
            **({"facts": json.loads(rows[i]["facts"])} if "facts" in rows[i] else {}),
        }
        for i, (prompt, reply) in enumerate(zip(prompts, replies.tokens, strict=True))
    ]
    return metrics, samples
