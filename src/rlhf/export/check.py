"""Whether what was written is the model that was trained: the same prompts to both, logit by logit and reply by reply."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf import files
from rlhf.config import Stage
from rlhf.errors import DataError, GuardStop
from rlhf.evaluation.evaluate import answer
from rlhf.evaluation.samples import final_samples
from rlhf.export.refuse import is_reward
from rlhf.models.roles import Role
from rlhf.models.shared import load_roles

Ids = list[list[int]]
# Highest mean difference of a logit (of a score, for reward models), and highest mean KL in nats a token. In fp32 merging alone is in it: NF4 +
# LoRA merged into the weights that were quantized, or into 4 bit, is far beyond (docs/export.md). Rounding costs more the deeper a model
# is, so below fp32 only what no rounding makes is refused, a tensor in the wrong place.
TOLERANCES = {"float32": (1e-3, 1e-6), "float16": (1e-1, 1e-3), "bfloat16": (0.5, 2e-2), "q8_0": (0.5, 2e-2)}


@dataclass
class Trained:
    """What the run itself says: greedy replies, and fp32 logits `[tokens, V]` of each reply, or scores `[replies]`."""

    prompts: Ids
    replies: Ids
    logits: list[torch.Tensor]


@dataclass(frozen=True)
class Difference:
    """How far a written model is from the run; `kl` is of a token's distribution, trained against written, in nats."""

    max_logit: float
    mean_logit: float
    kl: float
    same_replies: float  # share of greedy replies; of a reward model, of neighbours in the same order
    prompts: int
    positions: int

    def refuse(self, what: str, dtype: str) -> None:
        """Raises GuardStop where the difference is more than rounding to `dtype` makes."""
        mean, kl = TOLERANCES[dtype]
        if not (self.mean_logit <= mean and self.kl <= kl):
            seen = f"mean logit difference {self.mean_logit:.2g}, KL {self.kl:.2g}, allowed {mean:.2g} and {kl:.2g}"
            raise GuardStop(f"{what} is another model than the run: {seen} in {dtype}; nothing was written")


def prompts_of(stage: Stage, tokenizer: Any, most: int) -> Ids:
    """Prompts of the run's own evaluation; of a run without one, of its test or its training rows."""
    samples = final_samples(stage.path)[:most]
    if samples:
        return [list(sample["prompt_ids"]) for sample in samples]
    from rlhf.data.prepare import prepare
    from rlhf.models.tokenizer import prompt_renderer, renderer

    data = prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer))
    rows = data.test or [data.train[i] for i in range(min(most, len(data.train)))]
    found = [list(row.get("prompt_ids") or row["input_ids"])[: stage.dataset.max_prompt_length] for row in rows[:most]]
    if not found:
        raise DataError(
            f"{stage.path}: no prompts to hold the export against\n  fix: dataset.splits.test= for that run"
        )
    return found


def as_trained(stage: Stage, tokenizer: Any, prompts: Ids) -> Trained:
    """The run on its own base, quantized as in training, in fp32."""
    final = stage.path / files.FINAL
    if is_reward(stage):
        role = load_roles(stage, tokenizer, {}, reward=final)["reward"]
        scored = replies_to_score(tokenizer, prompts)
        with role.active():
            assert role.head is not None
            scores = [
                role.head(role.hidden(_row(p + r, role.device)))[0, -1:] for p, r in zip(prompts, scored, strict=True)
            ]
        return Trained(prompts, scored, [score.detach().float().cpu() for score in scores])
    role = load_roles(stage, tokenizer, {"policy": final})["policy"]
    replies = greedy(stage, tokenizer, role, prompts)
    with role.active():
        return Trained(prompts, replies, logits(role.model, prompts, replies))


def replies_to_score(tokenizer: Any, prompts: Ids) -> Ids:
    """For a reward model, which writes none: to each prompt the next one, as if it were a reply, and EOS."""
    return [[*after, tokenizer.eos_token_id] for after in [*prompts[1:], prompts[0]]]


def difference(stage: Stage, tokenizer: Any, trained: Trained, model: Any) -> Difference:
    """`model`, a causal LM or a sequence classifier as another program has it, against the run."""
    model = model.eval()
    if is_reward(stage):
        rows = [_row(p + r, model.device) for p, r in zip(trained.prompts, trained.replies, strict=True)]
        with torch.no_grad():
            ours, theirs = (
                torch.cat(trained.logits),
                torch.cat([model(input_ids=row).logits[0].float().cpu() for row in rows]),
            )
        gaps, order = (ours - theirs).abs(), (ours.diff().sign() == theirs.diff().sign()).float()
        same = float(order.mean()) if len(order) else 1.0
        return Difference(float(gaps.max()), float(gaps.mean()), 0.0, same, len(rows), len(rows))
    largest = total = divergence = 0.0
    count, size = 0, trained.logits[0].shape[-1]
    for prompt, reply, ours in zip(trained.prompts, trained.replies, trained.logits, strict=True):
        theirs = logits(model, [prompt], [reply])[0][:, :size]
        gap = (ours - theirs).abs()
        largest, total = max(largest, float(gap.max())), total + float(gap.mean(-1).double().sum())
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        count += len(reply)
    replies = greedy(stage, tokenizer, Role("policy", model), trained.prompts)
    same = sum(a == b for a, b in zip(replies, trained.replies, strict=True)) / len(replies)
    return Difference(largest, total / count, divergence / count, same, len(replies), count)


def greedy(stage: Stage, tokenizer: Any, role: Role, prompts: Sequence[list[int]]) -> Ids:
    return [sample["ids"] for sample in answer(stage, tokenizer, role, prompts, temperature=0.0)]


@torch.no_grad()
def logits(model: Any, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> list[torch.Tensor]:
    """fp32 `[tokens, V]` of each reply, a reply at a time: no padding, and so none that could differ."""
    found = []
    for prompt, reply in zip(prompts, replies, strict=True):
        output = model(input_ids=_row(prompt + reply, model.device), use_cache=False).logits[0]
        found.append(output[len(prompt) - 1 : -1].float().cpu())
    return found


def _row(ids: list[int], device: Any) -> torch.Tensor:
    return torch.tensor([ids], device=device)


def reload(folder: Path, dtype: str, reward: bool, gguf_file: str | None = None) -> Any:
    """What transformers makes of the written files, by itself."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    from rlhf.export.folder import DTYPES

    logging.disable_progress_bar()
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    more: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    return kind.from_pretrained(folder, dtype=DTYPES.get(dtype, torch.float32), **more)
