"""The replies that a run writes down, and how they are read back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.files import read_lines

Sample = dict[str, Any]
SAMPLES = "samples.jsonl"
TEST = "test"  # the set of samples.jsonl that reports compare


def write_samples(folder: Path, step: int, name: str, samples: Sequence[dict[str, Any]]) -> None:
    """Appends samples to `samples.jsonl`, after dropping those that a resumed run generates again."""
    path = folder / SAMPLES
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [
        line for line in lines if (row := json.loads(line))["step"] < step or (row["step"], row["set"]) < (step, name)
    ]
    added = [json.dumps({"step": step, "set": name, **sample}, ensure_ascii=False) for sample in samples]
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join([*kept, *added]) + "\n")
    partial.replace(path)


def last_step(path: Path) -> int:
    """The last step of which metrics.jsonl tells."""
    return max((line["step"] for line in read_lines(path / "metrics.jsonl")), default=0)


def final_samples(path: Path) -> list[Sample]:
    """The replies that a finished stage gave to the test prompts; none if it was asked none."""
    return [row for row in read_lines(path / SAMPLES) if row["set"] == TEST]
