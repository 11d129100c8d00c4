"""Prompts are checked before the first weight moves, and dealt in an order that depends on the seed alone."""

from dataclasses import dataclass
from typing import Any

import torch

from rlhf.ppo.rollout import stream


def prompt_of(row: dict[str, Any]) -> list[int]:
    """The prompt's ids without padding: by the row's own attention mask, if it has one."""
    ids = list(row["input_ids"])
    mask = row.get("attention_mask")
    return ids if mask is None else [token for token, real in zip(ids, mask, strict=True) if real]


def check_prompts(dataset: Any, name: str, *, response_length: int, context: int | None, vocabulary: int) -> None:
    """Raises ValueError for a dataset whose rows cannot be replied to, naming the row."""
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            f"{name} has no column input_ids (has: {', '.join(dataset.column_names)}); tokenize the prompts first"
        )
    for i, ids in enumerate(dataset["input_ids"]):
        if not len(ids):
            raise ValueError(f"{name} row {i}: the prompt is empty; drop it or give it at least a BOS token")
        if context is not None and len(ids) + response_length > context:
            raise ValueError(
                f"{name} row {i}: a prompt of {len(ids)} tokens and response_length = {response_length} exceed the "
                "model's "
                f"context of {context}; shorten the prompt to {context - response_length} tokens or lower "
                "response_length"
            )
        if max(ids) >= vocabulary or min(ids) < 0:
            raise ValueError(f"{name} row {i}: token id {max(ids)} is outside the model's vocabulary of {vocabulary}")


@dataclass(frozen=True)
class PromptOrder:
    """Which rows update `u` (from 1) trains on: each pass over the data is a new permutation, a ragged rest is left
    out.

    A function of the seed and the update, so the position in the prompts needs no state to be resumed.
    """

    rows: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < self.batch_size:
            raise ValueError(
                f"train_dataset has {self.rows} prompts, fewer than one batch of {self.batch_size}; add prompts or "
                "lower "
                "per_device_train_batch_size * gradient_accumulation_steps"
            )

    @property
    def updates_per_epoch(self) -> int:
        return self.rows // self.batch_size

    def batch(self, update: int) -> list[int]:
        epoch, position = divmod(update - 1, self.updates_per_epoch)
        order = torch.randperm(self.rows, generator=stream(self.seed, "prompts", epoch)).tolist()
        return order[position * self.batch_size : (position + 1) * self.batch_size]
