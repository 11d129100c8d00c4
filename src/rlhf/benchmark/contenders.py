"""The trainers that are measured, each built the way its users would build it, on the same weights and rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from typing import Any

from rlhf.benchmark.instrument import now
from rlhf.benchmark.workload import EOS, Task, Workload


@dataclass
class Contender:
    """A trainer ready to train; `phases` and `lengths` are filled while it does."""

    trainer: Any
    # seconds of each update by phase, and the lengths of its replies
    phases: dict[str, list[float]] = field(default_factory=dict)
    lengths: list[list[int]] = field(default_factory=list)


def ours(work: Workload, task: Task) -> Contender:
    """One base, an adapter a role."""
    from rlhf.models.shared import shared_roles
    from rlhf.ppo.trainer import PPOConfig, PPOTrainer

    tokenizer = work.tokenizer()
    roles = shared_roles(work.load(), tokenizer, work.folder / "sft", work.folder / "reward")
    stops = [EOS] if task.replies == "natural" else []
    args = PPOConfig(**_ppo_arguments(work, task), eos_token_ids=stops, rollout_base=task.rollout_base)
    rows = work.rows(task.prompts * task.updates, work.size.prompt_tokens)
    made = Contender(PPOTrainer(args, tokenizer, roles.policy, roles.reference, roles.reward, rows, roles.value))
    loop = made.trainer.loop
    sample, update = loop.sample, loop.update

    def sampled(*arguments: Any) -> Any:
        replies = sample(*arguments)
        made.lengths.append([len(ids) for ids in replies.tokens])
        return replies

    def updated(*arguments: Any) -> Any:
        logs = update(*arguments)
        for phase in ("rollout", "score", "update"):
            made.phases.setdefault(phase, []).append(logs[f"time/{phase}"])
        return logs

    loop.sample, loop.update = sampled, updated
    return made


def stock(work: Workload, task: Task) -> Contender:
    """Stock TRL as it runs on 4-bit weights: ready-made PEFT models, three bases, the policy's bare base as reference.

    With peft_config it would stop with `expected m1 and m2 to have the same dtype`; a fourth base for the SFT adapter as
    the reference would cost it more memory.
    """
    from peft import PeftModel
    from trl.experimental import ppo
    from trl.experimental.ppo import ppo_trainer

    def adapted(name: str, reward: bool, trained: bool) -> Any:
        return PeftModel.from_pretrained(work.load(reward), str(work.folder / name), is_trainable=trained)

    policy, value = adapted("sft", False, True), adapted("reward", True, True)
    reward = adapted("reward", True, False)
    args = ppo.PPOConfig(**_ppo_arguments(work, task), stop_token="eos" if task.replies == "natural" else None)
    rows = work.rows(task.prompts * task.updates, work.size.prompt_tokens)
    made = Contender(ppo.PPOTrainer(args, work.tokenizer(), policy, None, reward, rows, value, eval_dataset=rows))
    rollout, lengths, ending = made.phases.setdefault("rollout", []), made.lengths, task.replies == "natural"
    now_there: Any = ppo_trainer.batch_generation  # TRL's, or what an earlier contender of this process left
    generate: Callable[..., Any] = getattr(now_there, "__wrapped__", now_there)

    @wraps(generate)  # it holds lists and no trainer, whose weights would stay with it
    def generated(model: Any, queries: Any, *rest: Any) -> Any:
        began = now(work.device)
        found = generate(model, queries, *rest)
        rollout.append(now(work.device) - began)
        lengths.append(_lengths(found[0][:, queries.shape[1] :].tolist(), ending))
        return found

    ppo_trainer.batch_generation = generated
    return made


def sft(work: Workload, task: Task) -> Contender:
    """TRL's SFTTrainer with an adapter on the same base, on rows as long as a prompt with its reply."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    size, length = work.size, work.size.prompt_tokens + work.size.reply_tokens
    given = arguments(work, task) | {"max_steps": task.updates, "max_length": length, "learning_rate": 1e-5}
    rows: Dataset = work.rows(task.prompts * task.updates, length)
    lora = LoraConfig(r=size.rank, lora_alpha=2 * size.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(**given)
    trainer = SFTTrainer(work.load(), args, train_dataset=rows, processing_class=work.tokenizer(), peft_config=lora)
    return Contender(trainer, lengths=[[size.reply_tokens] * task.prompts] * task.updates)


def has_stock() -> bool:
    """Whether the TRL that is installed has a PPO to measure against; 1.12 is the last that does."""
    return find_spec("trl.experimental.ppo") is not None


BUILDERS: dict[str, Callable[[Workload, Task], Contender]] = {"ours": ours, "stock": stock, "sft": sft}


def arguments(work: Workload, task: Task) -> dict[str, Any]:
    """What all three are told, in the same words."""
    return {
        "output_dir": str(work.folder / "out"),
        "per_device_train_batch_size": work.size.micro_batch,
        "gradient_accumulation_steps": task.prompts // work.size.micro_batch,
        "gradient_checkpointing": False,
        "bf16": work.device == "cuda",
        "use_cpu": work.device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": task.seed,
    }


def _ppo_arguments(work: Workload, task: Task) -> dict[str, Any]:
    return arguments(work, task) | {
        "num_ppo_epochs": task.epochs,
        "num_mini_batches": 1,
        "total_episodes": task.prompts * task.updates,
        "response_length": work.size.reply_tokens,
        "local_rollout_forward_batch_size": work.size.rollout_batch,
        "num_sample_generations": 0,
        "temperature": 1.0,
        "learning_rate": 1e-5,
    }


def _lengths(replies: Sequence[Sequence[int]], ending: bool) -> list[int]:
    """Tokens of each reply up to its EOS; generation fills the rest of a row."""
    return [reply.index(EOS) + 1 if ending and EOS in reply else len(reply) for reply in replies]
