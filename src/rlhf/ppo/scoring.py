"""Scorers give one number a reply; shaping turns it into what the last token is paid."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.ppo.batches import lay_out
from rlhf.ppo.roles import Role

Ids = Sequence[Sequence[int]]


class Scorer(Protocol):
    """Anything that scores replies: token ids of `B` prompts and replies (EOS included) and their dataset rows -> fp32
    `[B]`.
    """

    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor: ...


@dataclass
class RoleScorer:
    """The reward role: its head on the hidden state of the reply's last token, the ids exactly as the policy wrote
    them.
    """

    role: Role
    pad_id: int
    batch_size: int = 8
    autocast: Callable[[], Any] = nullcontext

    @torch.no_grad()
    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        head = self.role.head
        assert head is not None, f"role {self.role.name} has no scalar head"
        scores = torch.zeros(len(prompts))
        with self.role.active(), self.autocast(), torch.no_grad():
            for batch in lay_out(prompts, replies, self.batch_size, self.pad_id, self.role.device):
                scores[batch.rows] = head(batch.last_states(self.role.hidden(batch.ids))).cpu()
        return scores


@dataclass
class FunctionScorer:
    """A function of texts: `function(prompts, replies, rows) -> list of float`, without special tokens in the texts."""

    function: Callable[[list[str], list[str], Sequence[dict[str, Any]]], Sequence[float]]
    tokenizer: Any

    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        prompt_texts = [self.tokenizer.decode(list(p), skip_special_tokens=True) for p in prompts]
        reply_texts = [self.tokenizer.decode(list(r), skip_special_tokens=True) for r in replies]
        scores = torch.as_tensor(list(self.function(prompt_texts, reply_texts, rows)), dtype=torch.float32)
        if scores.shape != (len(prompts),):
            name = getattr(self.function, "__name__", "the reward function")
            raise ValueError(
                f"{name} returned scores of shape {tuple(scores.shape)} for {len(prompts)} replies; one each"
            )
        return scores


@dataclass
class Combined:
    """Several scorers as one: their mean, their minimum, or mean - `spread_weight` * standard deviation
    (arXiv:2310.02743).
    """

    scorers: Sequence[Scorer]
    how: str = "mean"
    spread_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.how not in ("mean", "min", "mean_minus_spread"):
            raise ValueError(f"how = {self.how!r} is not allowed (mean, min, mean_minus_spread)")

    def __call__(self, prompts: Ids, replies: Ids, rows: Sequence[dict[str, Any]]) -> Tensor:
        scores = torch.stack([scorer(prompts, replies, rows) for scorer in self.scorers])
        if self.how == "min":
            return scores.amin(0)
        spread = scores.std(0, correction=0) if self.how == "mean_minus_spread" else 0.0
        return scores.mean(0) - self.spread_weight * spread


@dataclass
class RunningMoments:
    """Mean and variance of all scores seen so far (Chan et al. 1979), for reward scaling as in arXiv:2307.04964."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: Tensor) -> None:
        n, mean = len(scores), float(scores.double().mean())
        squares = float(((scores.double() - mean) ** 2).sum())
        total = self.count + n
        self.squares += squares + (mean - self.mean) ** 2 * self.count * n / total
        self.mean += (mean - self.mean) * n / total
        self.count = total

    @property
    def std(self) -> float:
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 and self.squares > 0 else 1.0


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    *,
    center: float,
    scale: float,
    clip: float | None,
    missing_eos_penalty: float | None,
    replace: bool,
) -> Tensor:
    """(score - center) / scale, clipped to +-clip; a reply without EOS then gets `-missing_eos_penalty` instead, or
    less of it.

    Replacing is the "EOS trick" of Ziegler et al. and of arXiv:2403.17031 (detail 23): the score of a text that stops
    in the middle means nothing. `replace=False` subtracts, as stock TRL does. `[B]` -> `[B]`, the scores given are left
    alone.
    """
    shaped = (scores - center) / scale
    if clip is not None:
        shaped = shaped.clamp(-clip, clip)
    if missing_eos_penalty is None:
        return shaped
    penalty = torch.full_like(shaped, -missing_eos_penalty)
    return torch.where(ended, shaped, penalty if replace else shaped + penalty)
