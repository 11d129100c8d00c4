"""The same for methods that learn from texts and rankings: stock TRL's trainer beside ours, which reads each token once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.benchmark.contenders import BUILDERS, Contender, arguments
from rlhf.benchmark.workload import Task, Workload, stopping_chance


@dataclass(frozen=True)
class Work:
    """Rankings of `k` replies, with lengths as shares of the size's reply length; or texts, where `k` is 0."""

    part: str
    k: int = 0
    prompt: float = 1.0
    reply: float = 1.0

    @property
    def pairs(self) -> int:
        """Pairs of a ranking."""
        return max(1, self.k * (self.k - 1) // 2)


WORKS = {
    "dpo_rankings": Work("dpo", 4, prompt=0.5),
    "dpo_pairs": Work("dpo", 2),
    "dpo_long_prompts": Work("dpo", 2, prompt=1.5, reply=0.5),
    "dpo_again": Work("dpo", 2),
    "reward_kwise": Work("reward", 4),
    "reward_pairs": Work("reward", 4),
    "sft": Work("sft"),
}


def work_of(name: str) -> Work:
    """A work by its name; `dpo-6` and `reward-6` are rankings of 6 with a prompt as long as a reply."""
    part, dash, replies = name.partition("-")
    return Work(part, int(replies)) if dash else WORKS[name]


def builder(task: Task) -> Callable[[Workload, Task], Contender]:
    """What makes the trainer of a task."""
    work, slash, who = task.contender.partition("/")
    return {"dpo": _dpo, "reward": _reward, "sft": _sft}[work_of(work).part] if slash else BUILDERS[who or work]


def _dpo(work: Workload, task: Task) -> Contender:
    """TRL's DPOTrainer on pairs, with a PEFT model, which keeps its own copy of the adapter as the reference; or ours, as src/train.py
    makes it. `dpo_again` is a second run on the same rows: ours finds what the reference says of them, TRL asks it again."""
    from datasets import Dataset, config
    from trl.trainer.dpo_config import DPOConfig

    from rlhf.generation.rankings import grouped
    from rlhf.methods.dpo_once import TokenizedDPOTrainer, trainer

    name, _, who = task.contender.partition("/")
    rows, args = _rows(work, task), DPOConfig(**_arguments(work, task), max_length=None)
    if who == "stock":
        made: Any = TokenizedDPOTrainer(_model(work), None, args, train_dataset=rows, processing_class=work.tokenizer())
        return Contender(made, lengths=_lengths(work, task))
    args.per_device_train_batch_size //= work_of(name).pairs
    args.precompute_ref_log_probs = name == "dpo_again"
    config.HF_DATASETS_CACHE = work.folder / "cache"
    for _ in range(2 if name == "dpo_again" else 1):
        made = trainer(_model(work), None, args, work.tokenizer(), Dataset.from_list(grouped(rows)), longest=4096)
    return Contender(made, lengths=_lengths(work, task))


def _reward(work: Workload, task: Task) -> Contender:
    """`reward_pairs`: TRL's RewardTrainer on pairs; `reward_kwise`: the K-wise trainer, where each reply has a prompt of its own; against
    either ours, with one prompt for all its replies."""
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig

    from rlhf.generation.rankings import grouped
    from rlhf.methods import reward

    name, _, who = task.contender.partition("/")
    rows, args, model = (
        _rows(work, task),
        RewardConfig(**_arguments(work, task), max_length=None),
        _model(work, "reward"),
    )
    tokenizer = work.tokenizer()
    if (name, who) == ("reward_pairs", "stock"):
        pairs = reward.PairCollator(tokenizer.pad_token_id)
        made: Any = reward.PairTrainer(model, args, pairs, rows, None, processing_class=tokenizer)
        return Contender(made, lengths=_lengths(work, task))
    args.per_device_train_batch_size //= work_of(name).pairs
    once = Dataset.from_list(grouped(rows))
    if who == "ours":
        made = reward.trainer(model, args, tokenizer, once, None, longest=4096)
    else:
        collator = reward.RankingCollator(tokenizer.pad_token_id, share=False)
        made = reward.RankingTrainer(model, args, collator, once, None, processing_class=tokenizer)
    return Contender(made, lengths=_lengths(work, task))


def _sft(work: Workload, task: Task) -> Contender:
    """TRL's SFTTrainer, or ours, on rows of natural lengths whose first third is a prompt."""
    import torch
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from rlhf.methods.sft import trainer

    limit, count = work.size.prompt_tokens + work.size.reply_tokens, task.prompts * task.updates
    drawn = torch.empty(count).geometric_(stopping_chance(limit), generator=torch.Generator().manual_seed(count))
    lengths = drawn.clamp(4, limit).long().tolist()
    ids = [row[:length] for row, length in zip(work.rows(count, limit)["input_ids"][:], lengths, strict=True)]
    labels = [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]
    rows, args = (
        Dataset.from_dict({"input_ids": ids, "labels": labels}),
        SFTConfig(**_arguments(work, task), max_length=limit),
    )
    if task.contender == "sft/stock":
        made: Any = SFTTrainer(_model(work), args, train_dataset=rows, processing_class=work.tokenizer())
    else:
        made = trainer(_model(work), args, work.tokenizer(), rows)
    return Contender(made, lengths=[lengths[at : at + task.prompts] for at in range(0, count, task.prompts)])


def _model(work: Workload, adapter: str = "sft") -> Any:
    from peft import PeftModel

    base = work.load(reward=adapter == "reward")
    return PeftModel.from_pretrained(base, str(work.folder / adapter), is_trainable=True)


def _lengths(work: Workload, task: Task) -> list[list[int]]:
    what = work_of(task.contender.partition("/")[0])
    return [[round(what.reply * work.size.reply_tokens)] * what.k * task.prompts] * task.updates


def _arguments(work: Workload, task: Task) -> dict[str, Any]:
    """Micro-batches of as many pairs as the size says, or the fewest that make whole rankings; of texts twice as many."""
    what = work_of(task.contender.partition("/")[0])
    micro = max(1, (work.size.micro_batch if what.k else 2 * work.size.micro_batch) // what.pairs)
    given = arguments(work, task) | {"per_device_train_batch_size": micro * what.pairs, "max_steps": task.updates}
    return given | {"gradient_accumulation_steps": task.prompts // micro, "learning_rate": 1e-5}


def _rows(work: Workload, task: Task) -> Any:
    """Every pair of `task.prompts` rankings an update."""
    from datasets import Dataset

    what, limit = work_of(task.contender.partition("/")[0]), work.size.reply_tokens
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
    return Dataset.from_list(rows)
