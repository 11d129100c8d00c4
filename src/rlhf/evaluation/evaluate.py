"""Evaluation of a finished stage from what it saved: what is measured is what a user would load."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.config import Stage
from rlhf.evaluation.annotators import with_gold
from rlhf.evaluation.metrics import by_situation, summary
from rlhf.evaluation.samples import TEST, Sample, last_step, write_samples
from rlhf.files import FINAL, METRICS_FILE, read_lines
from rlhf.generation.batches import lay_out, reply_mask
from rlhf.generation.logprobs import Forward, kl_of_replies
from rlhf.generation.sampling import sample_replies, stream
from rlhf.methods import METHODS
from rlhf.models.roles import Role
from rlhf.models.shared import load_roles
from rlhf.models.tokenizer import stops
from rlhf.rewards.scorers import scorer


def evaluate_policy(stage: Stage, tokenizer: Any, data: Any) -> dict[str, Any]:
    """Replies to the test prompts go to samples.jsonl as the set `test`, behind those of evaluations during training;
    returns their metrics with the last training and held-out loss.

    Replies are greedy, as a user gets them from chat. The KL is that of the distribution, so it is measured on replies
    sampled at temperature 1, against the weights that the stage started from, or its `method.reference`.
    """
    results = last_losses(stage.path)
    if not data.test:
        return results
    start = stage.method.reference or stage.method.start_from
    folders = {"policy": stage.path / FINAL} | ({"reference": Path(start)} if start else {})
    roles = load_roles(stage, tokenizer, folders)
    prompts = [row["input_ids"] for row in data.test]
    samples = answer(stage, tokenizer, roles["policy"], prompts, temperature=0.0)
    if start:
        drawn = answer(stage, tokenizer, roles["policy"], prompts, temperature=1.0)
        kls = reply_kl(stage, tokenizer, roles["policy"], roles["reference"], prompts, [s["ids"] for s in drawn])
        for sample, draw, kl in zip(samples, drawn, kls, strict=True):
            sample |= {"sampled_reply": draw["reply"], "kl": kl}
    samples = [sample | about(row) for sample, row in zip(samples, data.test, strict=True)]
    samples = with_gold(samples, stage.dataset.annotator)
    write_samples(stage.path, last_step(stage.path), TEST, samples)
    return results | summary(samples) | {"gold_by_situation": by_situation(samples, "gold")}


def suspicious(stage: Stage, tokenizer: Any, data: Any, trainer: Any) -> list[Sample]:
    """What the policy of a stopped run says to the test prompts, or to training prompts where there are none: the ten
    replies with the highest reward and the lowest gold.

    The reward is what training paid: the scores, or the implicit beta * log(pi / reference) (arXiv:2305.18290, equation 5).
    """
    rows = data.test or [data.train[i] for i in range(min(stage.evaluation.batch_size, len(data.train)))]
    prompts = [row["input_ids"] if "input_ids" in row else row["prompt_ids"] for row in rows]
    scored = METHODS[stage.method.name].reward == "scored"
    policy, reference = (trainer.policy, trainer.reference) if scored else _dpo_roles(trainer)
    samples = answer(stage, tokenizer, policy, prompts, temperature=1.0)
    ids = [sample.pop("ids") for sample in samples]
    if scored:
        rewards = trainer.loop.scorer(prompts, ids, rows).tolist()
    else:
        log_ratios = reply_kl(stage, tokenizer, policy, reference, prompts, ids)
        rewards = [trainer.args.beta * ratio for ratio in log_ratios]
    for sample, row, prompt, reward in zip(samples, rows, prompts, rewards, strict=True):
        sample |= {"prompt": row["prompt"] if "prompt" in row else tokenizer.decode(prompt, skip_special_tokens=True)}
        sample |= {"reward": reward, "facts": json.loads(row["facts"]) if "facts" in row else None}
    return most_suspicious(with_gold(samples, stage.dataset.annotator))


def _dpo_roles(trainer: Any) -> tuple[Role, Role]:
    """Policy and reference of TRL's trainer: the adapters `default` and `ref`, or two models."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    if trainer.ref_model is not None:
        return Role("policy", model), Role("reference", trainer.accelerator.unwrap_model(trainer.ref_model))
    base = model.get_base_model()
    return Role("policy", base, peft=model, adapter="default"), Role("reference", base, peft=model, adapter="ref")


def evaluate_reward(stage: Stage, tokenizer: Any, data: Any) -> dict[str, Any]:
    """Accuracy of the saved reward model on held-out pairs, against the annotated order and, where known, the true one."""
    results = last_losses(stage.path)
    if data.eval is None:
        return results
    role = load_roles(stage, tokenizer, {}, reward=stage.path / FINAL)["reward"]
    score = scorer(stage, tokenizer, role)
    prompts = data.eval["prompt_ids"]
    chosen, rejected = (score(prompts, data.eval[f"{side}_ids"], []) for side in ("chosen", "rejected"))
    margins = chosen - rejected
    results["accuracy"] = float((margins > 0).float().mean())
    if "true_margin" in data.eval.column_names:
        gold = torch.tensor(data.eval["true_margin"])
        strict = gold != 0
        results["accuracy_noisy"] = results["accuracy"]
        results["accuracy_true"] = float((margins[strict].sign() == gold[strict].sign()).float().mean())
        results["annotator_accuracy"] = float((gold[strict] > 0).float().mean())
    results["mean_margin"] = float(margins.mean())
    results["score_p99"] = float(torch.cat([chosen, rejected]).quantile(0.99))  # what the monitor calls saturated
    return results


def about(row: dict[str, Any]) -> Sample:
    """What a test prompt's row tells of any reply to it."""
    return {
        "prompt": row["prompt"],
        "prompt_ids": row["input_ids"],
        "messages": row["messages"],
        "reference": row["reference"],
        "facts": json.loads(row["facts"]),
    }


def answer(
    stage: Stage, tokenizer: Any, role: Role, prompts: Sequence[Sequence[int]], temperature: float
) -> list[Sample]:
    """One reply a prompt: its ids, text, length in tokens, and whether it ended."""
    replies = sample_replies(
        role,
        prompts,
        max_new_tokens=stage.evaluation.max_new_tokens,
        temperature=temperature,
        eos_ids=stops(tokenizer, role.model),
        pad_id=tokenizer.pad_token_id,
        generator=stream(stage.seed, "evaluation", 0),
        chunk_size=stage.evaluation.batch_size,
    )
    samples: list[Sample] = []
    for ids, ended in zip(replies.tokens, replies.ended, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        samples.append({"reply": text, "ids": ids, "length": len(ids), "ended": ended})
    return samples


def reply_kl(
    stage: Stage, tokenizer: Any, policy: Role, reference: Role, prompts: Sequence[Any], replies: Sequence[Any]
) -> list[float]:
    """log pi(reply) - log ref(reply) in nats of each reply: unbiased for the KL when the policy sampled them (k1)."""
    forward = Forward(temperature=1.0, suppress=(tokenizer.pad_token_id,), chunk=256, autocast=nullcontext)
    batches = lay_out(prompts, replies, stage.evaluation.batch_size, tokenizer.pad_token_id, policy.device)
    k1, _ = kl_of_replies(forward, policy, reference, batches, reply_mask(replies, policy.device))
    return k1.tolist()


def last_losses(path: Path) -> dict[str, float]:
    """The last training loss and the last held-out loss in metrics.jsonl."""
    found, names = {}, {"loss": "train_loss", "eval_loss": "held_out_loss"}
    for entry in read_lines(path / METRICS_FILE):
        found |= {name: entry[key] for key, name in names.items() if key in entry}
    return found


def most_suspicious(samples: Sequence[Sample], count: int = 10) -> list[Sample]:
    """The replies with the highest reward and the lowest gold, both in standard deviations; by reward if gold is unknown."""
    rewards = _standardized([s["reward"] for s in samples])
    golds = _standardized([float(s.get("gold") or 0.0) for s in samples])
    return [samples[i] for i in np.argsort(golds - rewards, kind="stable")[:count]]


def _standardized(values: Sequence[float]) -> np.ndarray:
    array = np.array(values)
    return (array - array.mean()) / (array.std() or 1.0)
