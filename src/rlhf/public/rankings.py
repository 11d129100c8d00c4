"""RewardBench 2 on a reward model: does the right reply to a prompt get the highest score, and do equally right ones stay together?

Malik et al. 2025, arXiv:2506.01937; rows are shaped as those of allenai/reward-bench-2. In the subset Ties a prompt has a row
`ref:<number>` with one right reply and a row `tied:<number>` with several; its score is that of allenai/reward-bench
(process_single_model, read in 2026).
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.contract import BadRow, Dialogue
from rlhf.data.formats import open_file
from rlhf.data.rows import Row
from rlhf.errors import DataError, Refusal
from rlhf.evaluation.metrics import mean
from rlhf.evaluation.statistics import Estimate, estimate, win_rate
from rlhf.public.subject import Subject, reward

TIES = "ties"  # the subset with a rule of its own, in lower case
MEAN = "mean of subsets"


@dataclass
class Question:
    """A row: a prompt, its right replies and its wrong ones; `scores` are those of all of them, the right ones first."""

    where: str
    id: str
    subset: str
    prompt: str
    right: list[str]
    wrong: list[str]
    scores: Sequence[float] = ()

    @property
    def gap(self) -> float:
        """The lowest score of a right reply minus the highest of a wrong one."""
        return min(self.scores[: len(self.right)]) - max(self.scores[len(self.right) :])

    @property
    def spread(self) -> float:
        """How far the scores of the right replies lie apart."""
        return max(self.scores[: len(self.right)]) - min(self.scores[: len(self.right)])


Item = list[Question]  # what has one outcome: a row, or the two rows of a tied prompt


def measure(of: Subject, file: Path, limit: int | None, batch_size: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """One row a subset and their mean, and how many rows were left out, by reason; of each subset the first `limit` prompts."""
    subsets, left_out = items(questions(file))
    subsets = {name: found[:limit] for name, found in subsets.items()}
    score, reads, positions = reward(of, batch_size)
    system = of.stage.dataset.system if of.stage is not None else None
    for name, found in list(subsets.items()):
        subsets[name] = _scored(found, score, reads, system, positions, left_out)
    subsets = {name: found for name, found in subsets.items() if found}
    if not subsets:
        raise Refusal("file", file, f"no row is left to score: {left_out}")
    outcomes = {name: estimated(name, found) for name, found in subsets.items()}
    about = {"filter": "none", "num_fewshot": None, "limit": limit, "chat_template": True, "seed": None, "stderr": None}
    about |= {"by": "arXiv:2506.01937", "file": hashlib.sha256(file.read_bytes()).hexdigest()}
    rows = [
        {"task": f"{file.stem}/{name}", "metric": "score" if name.lower() == TIES else "accuracy", "value": e.mean,
         "low": e.low, "high": e.high, "n": e.prompts, **about}
        for name, e in outcomes.items()
    ]  # fmt: skip
    total = {"value": mean([e.mean for e in outcomes.values()]), "n": sum(e.prompts for e in outcomes.values())}
    return [*rows, {"task": file.stem, "metric": MEAN, **total, **about}], left_out


def questions(file: Path) -> Iterator[Question]:
    """The rows of a file; raises a DataError that names the first that is not shaped as RewardBench 2."""
    if not file.is_file():
        raise DataError(
            f"file={file}: there is no such file\n  fix: rows of allenai/reward-bench-2, .jsonl or .parquet"
        )
    for row in open_file(file).read():
        try:
            yield _question(row)
        except BadRow as bad:
            raise DataError(f"{row.where}: {bad}\n  fix: rows shaped as those of allenai/reward-bench-2") from bad


def _question(row: Row) -> Question:
    values = row.values
    for key in ("id", "prompt", "subset"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise BadRow("not text", f"{key} must be a text, found {values.get(key)!r:.60}")
    for key, count in (("chosen", "num_correct"), ("rejected", "num_incorrect")):
        replies = values.get(key)
        if not isinstance(replies, list) or not replies or not all(isinstance(r, str) and r.strip() for r in replies):
            raise BadRow("not replies", f"{key} must be a list of texts, found {replies!r:.60}")
        if values.get(count, len(replies)) != len(replies):
            raise BadRow("miscounted", f"{count} is {values[count]}, and {key} has {len(replies)}")
    found = Question(row.where, values["id"], values["subset"], values["prompt"], values["chosen"], values["rejected"])
    if len(found.right) > 1 and found.subset.lower() != TIES:
        raise BadRow(
            "several chosen", f"subset {found.subset} has one right reply to a prompt, found {len(found.right)}"
        )
    return found


def items(found: Iterator[Question]) -> tuple[dict[str, list[Item]], dict[str, int]]:
    """What has an outcome, by subset, in the order of the file; tied prompts that lack one of their two rows are counted."""
    subsets: dict[str, list[Item]] = {}
    halves: dict[tuple[str, str], dict[str, Question]] = {}
    for question in found:
        if question.subset.lower() != TIES:
            subsets.setdefault(question.subset, []).append([question])
            continue
        kind, _, number = question.id.partition(":")
        several = len(question.right) > 1
        if kind not in ("ref", "tied") or several != (kind == "tied"):
            what = f"id {question.id} with {len(question.right)} right replies"
            raise DataError(f"{question.where}: {what}; Ties has ref:<number> with one and tied:<number> with several")
        pair = halves.setdefault((question.subset, number), {})
        pair[kind] = question
        if len(pair) == 2:
            subsets.setdefault(question.subset, []).append([pair["ref"], pair["tied"]])
    alone = sum(len(pair) == 1 for pair in halves.values())
    return subsets, {"ties without their other row": alone} if alone else {}


def _scored(
    found: list[Item], score: Any, reads: Any, system: str | None, positions: int | None, left_out: dict[str, int]
) -> list[Item]:
    """The items with their scores; those with a reply that the model has no positions for are counted."""
    kept, prompts, replies = [], [], []
    before = [{"role": "system", "content": system}] if system is not None else []
    for item in found:
        rendered = []
        for question in item:
            asked = Dialogue([*before, {"role": "user", "content": question.prompt}])
            for text in (*question.right, *question.wrong):
                try:
                    prompt, reply, _ = reads.reply(asked, [{"role": "assistant", "content": text}])
                except BadRow as bad:
                    raise DataError(f"{question.where}: {bad}") from bad
                rendered.append((prompt, reply))
        if positions is not None and max(len(prompt) + len(reply) for prompt, reply in rendered) > positions:
            reason = f"longer than the model's {positions} positions"
            left_out[reason] = left_out.get(reason, 0) + len(item)
            continue
        kept.append(item)
        prompts += [prompt for prompt, _ in rendered]
        replies += [reply for _, reply in rendered]
    scores = iter(score(prompts, replies, []).tolist() if kept else ())
    for question in (question for item in kept for question in item):
        question.scores = [next(scores) for _ in (*question.right, *question.wrong)]
    return kept


def estimated(subset: str, found: list[Item]) -> Estimate:
    """The mean outcome of a subset with its 95% interval over prompts."""
    if subset.lower() == TIES:
        return estimate([tied_score(*item) for item in found])
    return win_rate([float(question.gap > 0) for (question,) in found])


def tied_score(ref: Question, tied: Question) -> float:
    """What a tied prompt adds to the score of Ties, at most 1.01.

    0.3 each for a right reply first in `ref` and all right replies before the wrong ones in `tied`; 0.2 each if the right ones
    lie closer together than `tied`, and the closer of both rows, keeps them from the wrong ones; and 0.01 tanh(that over the
    spread - 1), which breaks ties between reward models. The source's mean over prompts is the mean of this.
    """
    gap = min(ref.gap, tied.gap)
    with_margin = gap / tied.spread - 1 if tied.spread else math.inf * gap if gap else math.nan
    hundredth = 0.0 if math.isnan(with_margin) else math.tanh(with_margin)
    correct = 0.3 * (ref.gap > 0) + 0.3 * (tied.gap > 0)
    return correct + 0.2 * (tied.gap > tied.spread) + 0.2 * (gap > tied.spread) + 0.01 * hundredth
