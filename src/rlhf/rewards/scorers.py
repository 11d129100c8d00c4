"""Who gives one number a reply: a reward role, a function of texts, a classifier of its own, several together."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.config import Stage
from rlhf.errors import Refusal
from rlhf.generation.batches import lay_out
from rlhf.models.roles import Role
from rlhf.parallel import ranks

Ids = Sequence[Sequence[int]]


class Scorer(Protocol):
    """Anything that scores replies: ids of `B` prompts and replies (EOS included) and their rows to fp32 `[B]`."""

    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor: ...


@dataclass
class RoleScorer:
    """The reward role: its head on the hidden state of the reply's last token, the ids as the policy wrote them."""

    role: Role
    pad_id: int
    batch_size: int = 8
    autocast: Callable[[], Any] = nullcontext

    @torch.no_grad()
    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        head = self.role.head
        assert head is not None, f"role {self.role.name} has no scalar head"
        scores, role = torch.zeros(len(prompts)), self.role
        batches = lay_out(prompts, replies, self.batch_size, role.filler(self.pad_id), role.device)
        with role.active(), self.autocast():
            for batch in ranks.share(batches):
                scores[batch.rows] = head(batch.last_states(role.hidden(batch.ids))).cpu()
        return ranks.total(scores)


@dataclass
class FunctionScorer:
    """A function of texts: `function(prompts, replies, rows) -> list of float`, without special tokens in the texts."""

    function: Callable[[list[str], list[str], Sequence[dict[str, Any]]], Sequence[float]]
    tokenizer: Any

    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        prompt_texts = [self.tokenizer.decode(list(p), skip_special_tokens=True) for p in prompts]
        reply_texts = [self.tokenizer.decode(list(r), skip_special_tokens=True) for r in replies]
        scores = torch.zeros(len(prompts))
        with ranks.agreed():
            if not ranks.rank():  # once: it may be another program, or cost money
                scores = torch.as_tensor(list(self.function(prompt_texts, reply_texts, rows)), dtype=torch.float32)
            if scores.shape != (len(prompts),):
                name = getattr(self.function, "__name__", "the reward function")
                why = f"returned scores of shape {tuple(scores.shape)} for {len(prompts)} replies"
                raise Refusal("reward_model", name, why, fix="one number a reply")
        return ranks.same(scores)


@dataclass
class TextScorer:
    """A sequence classifier with a tokenizer of its own: the logit of one label, on the text of prompt and reply.

    The policy's ids are decoded without special tokens. Where the classifier has a chat template and the row its
    `messages` (a JSON list), those and the reply are rendered by that template; else prompt and reply are read as one
    text. Where that is longer than the classifier's context, its beginning is cut, and the first time says so.
    """

    model: Any
    tokenizer: Any
    policy_tokenizer: Any
    label: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.limit: int = min(positions or 10**9, self.tokenizer.model_max_length)
        self.told = False

    def encode(self, prompt: Sequence[int], reply: Sequence[int], row: dict[str, Any]) -> list[int]:
        messages = json.loads(row.get("messages") or "null")
        if messages and self.tokenizer.chat_template:
            said = self.policy_tokenizer.decode(list(reply), skip_special_tokens=True).strip()
            turns = [*messages, {"role": "assistant", "content": said}]
            text, own = self.tokenizer.apply_chat_template(turns, tokenize=False), False
        else:
            text, own = self.policy_tokenizer.decode([*prompt, *reply], skip_special_tokens=True), True
        ids = self.tokenizer(text, add_special_tokens=own, truncation=False)["input_ids"]
        if len(ids) > self.limit:
            if not self.told:
                cut = f"a text of {len(ids)} tokens is scored by its last {self.limit}: {self.model.name_or_path}"
                print(cut, flush=True)
            self.told = True
            self.tokenizer.truncation_side = "left"
            ids = self.tokenizer(text, add_special_tokens=own, truncation=True, max_length=self.limit)["input_ids"]
        return ids

    @torch.no_grad()
    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        texts = [self.encode(p, r, row) for p, r, row in zip(prompts, replies, rows, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        size = self.batch_size if self.tokenizer.pad_token_id is not None else 1
        scores = torch.zeros(len(texts))
        padding = "longest" if size > 1 else False
        for some in ranks.share([order[start : start + size] for start in range(0, len(order), size)]):
            batch = self.tokenizer.pad({"input_ids": [texts[i] for i in some]}, padding=padding, return_tensors="pt")
            scores[some] = self.model(**batch.to(self.model.device)).logits[:, self.label].float().cpu()
        return ranks.total(scores)


@dataclass
class Combined:
    """Several scorers as one: their mean, their minimum, or mean - `spread_coef` * standard deviation over the scorers
    (worst-case and uncertainty-weighted optimization of Coste et al. 2023, arXiv:2310.02743).
    """

    scorers: Sequence[Scorer]
    how: str = "mean"
    spread_coef: float = 1.0

    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        scores = torch.stack([scorer(prompts, replies, rows) for scorer in self.scorers])
        if self.how == "minimum":
            return scores.amin(0)
        spread = scores.std(0, correction=0) if self.how == "mean_minus_spread" else 0.0
        return scores.mean(0) - self.spread_coef * spread


def scorer(stage: Stage, tokenizer: Any, role: Role) -> RoleScorer:
    """The score of `prompt ids + reply ids` under a reward role, as PPO computes it."""
    return RoleScorer(role, tokenizer.pad_token_id, stage.evaluation.batch_size)
