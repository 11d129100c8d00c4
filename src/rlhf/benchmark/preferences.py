"""The same for methods that learn from rankings: stock TRL's trainer on pairs, and ours, which reads each token once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.benchmark.contenders import BUILDERS, Contender, arguments
from rlhf.benchmark.workload import Task, Workload


@dataclass(frozen=True)
class Work:
    """Rankings of `k` replies, with lengths as shares of the size's reply length."""

    k: int
    prompt: float
    reply: float

    @property
    def pairs(self) -> int:
        """Pairs of a ranking."""
        return self.k * (self.k - 1) // 2


WORKS = {
    "dpo_rankings": Work(4, 0.5, 1.0),
    "dpo_pairs": Work(2, 1.0, 1.0),
    "dpo_long_prompts": Work(2, 1.5, 0.5),
}


def builder(task: Task) -> Callable[[Workload, Task], Contender]:
    """What makes the trainer of a task."""
    return {**BUILDERS, **{f"{work}/stock": stock for work in WORKS}, **{f"{work}/ours": ours for work in WORKS}}[
        task.contender
    ]


def stock(work: Workload, task: Task) -> Contender:
    """TRL's DPOTrainer on a PEFT model, which keeps its own copy of the adapter as the reference."""
    from rlhf.methods.dpo_once import TokenizedDPOTrainer

    rows, pairs = _rows(work, task)
    model, args = _model(work, task, pairs)
    made = TokenizedDPOTrainer(model, None, args, train_dataset=rows, processing_class=work.tokenizer())
    return Contender(made, lengths=_lengths(work, task))


def ours(work: Workload, task: Task) -> Contender:
    """The same on rankings, as src/train.py does it."""
    from datasets import Dataset

    from rlhf.generation.rankings import grouped
    from rlhf.methods.dpo_once import trainer

    rows, pairs = _rows(work, task)
    model, args = _model(work, task, pairs)
    args.per_device_train_batch_size //= pairs
    made = trainer(model, None, args, work.tokenizer(), Dataset.from_list(grouped(rows)), longest=1024)
    return Contender(made, lengths=_lengths(work, task))


def _model(work: Workload, task: Task, pairs: int) -> tuple[Any, Any]:
    from peft import PeftModel
    from trl.trainer.dpo_config import DPOConfig

    model: Any = PeftModel.from_pretrained(work.load(), str(work.folder / "sft"), is_trainable=True)
    return model, DPOConfig(**_arguments(work, task, pairs), max_length=None)


def _lengths(work: Workload, task: Task) -> list[list[int]]:
    what = WORKS[task.contender.partition("/")[0]]
    return [[round(what.reply * work.size.reply_tokens)] * what.k * task.prompts] * task.updates


def _rankings(work: Workload, pairs: int) -> int:
    return max(1, work.size.micro_batch // pairs)


def _arguments(work: Workload, task: Task, pairs: int) -> dict[str, Any]:
    micro = _rankings(work, pairs)
    given = arguments(work, task) | {"per_device_train_batch_size": micro * pairs, "max_steps": task.updates}
    return given | {"gradient_accumulation_steps": task.prompts // micro, "learning_rate": 1e-5}


def _rows(work: Workload, task: Task) -> tuple[Any, int]:
    """Every pair of `task.prompts` rankings an update, and how many a ranking has."""
    from datasets import Dataset

    what, limit = WORKS[task.contender.partition("/")[0]], work.size.reply_tokens
    prompt, reply = round(what.prompt * limit), round(what.reply * limit)
    count = task.prompts * task.updates
    prompts = work.rows(count, prompt)["input_ids"][:]
    replies = work.rows(what.k * count, reply)["input_ids"][:]
    rows = []
    for ranking, ids in enumerate(prompts):
        own = replies[ranking * what.k : (ranking + 1) * what.k]
        for better in range(what.k):
            for worse in range(better + 1, what.k):
                pair = {"prompt_ids": ids, "chosen_ids": own[better], "rejected_ids": own[worse]}
                rows.append(pair | {"ranking": ranking, "k": what.k, "length": prompt + reply})
    return Dataset.from_list(rows), what.pairs
