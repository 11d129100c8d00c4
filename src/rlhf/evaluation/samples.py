"""The replies that a run writes down, and how they are read back."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from rlhf.files import METRICS_FILE, SAMPLES_FILE, read_lines, verify, write_lines
from rlhf.parallel import ranks

TEST = "test"  # the set of samples.jsonl that reports compare
FORMER = {"score": "reward", "proxy": "reward"}  # what earlier runs and comparisons called it


class Sample(TypedDict, total=False):
    """A reply and what is known about it; only the first three keys are in every sample that a policy gave."""

    reply: str  # its text
    length: int  # its tokens, EOS included
    ended: bool  # whether it ends in EOS within the limit
    ids: list[int]  # its tokens, EOS included
    prompt: str  # the text it answers, without special tokens
    prompt_ids: list[int]  # that text's tokens
    messages: str | None  # the turns before it as JSON, where the dataset has turns
    reference: str | None  # the answer that the dataset has for the prompt
    facts: dict[str, str] | None  # what the dataset's annotator judges by
    sampled_reply: str  # where `reply` is greedy: another one, sampled at temperature 1
    kl: float  # log pi(reply) - log ref(reply) in nats, of `sampled_reply` where there is one
    gold: float  # its true preference
    known: bool  # whether every word is a word of the dataset's language
    reward: float  # the reward model's score
    step: int  # the training step it was given at
    set: str  # which evaluation asked: `test`, or a name of the trainer's


def to_samples(entries: Iterable[dict[str, Any]]) -> list[Sample]:
    """Samples as they were written, keys that have another name by now under that name."""
    return [cast(Sample, {FORMER.get(key, key): value for key, value in entry.items()}) for entry in entries]


def column(samples: Iterable[Sample], key: str) -> np.ndarray:
    """`[samples]` of one number of each; raises KeyError where one has none."""
    return np.array([float(sample[key]) for sample in samples])


def situation(sample: Sample) -> str:
    """What its prompt is about, as the facts name it; empty where they don't."""
    return (sample.get("facts") or {}).get("situation") or ""


def write_samples(folder: Path, step: int, name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Appends samples to `samples.jsonl`, after dropping those that a resumed run generates again; in the main process only."""
    path = folder / SAMPLES_FILE
    with ranks.agreed():
        if ranks.is_main():
            kept = [row for row in read_lines(path) if (row["step"], row["set"]) < (step, name)]
            write_lines(path, [*kept, *({"step": step, "set": name, **sample} for sample in samples)])


def last_step(path: Path) -> int:
    """The last step of which metrics.jsonl tells."""
    return max((line["step"] for line in read_lines(path / METRICS_FILE)), default=0)


def final_samples(path: Path) -> list[Sample]:
    """The replies that a finished stage gave to the test prompts; none if it was asked none."""
    verify(path, SAMPLES_FILE)
    return to_samples(row for row in read_lines(path / SAMPLES_FILE) if row["set"] == TEST)
