"""The options that our PPO adds to TRL's PPOConfig, the checks of all options, and the sizes, parameter groups and
learning rates that follow from them."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from rlhf.errors import ConfigError, Refusal
from rlhf.models.roles import Role
from rlhf.models.tokenizer import stops


def option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class PPOOptions:
    """Fields that `PPOConfig` adds. They precede TRL's in the class order, so a default here wins over one there."""

    adam_epsilon: float = option(1e-5, "Epsilon of AdamW; 1e-8 gives sign-like first steps to LoRA (arXiv:2403.17031).")
    value_learning_rate: float | None = option(None, "Learning rate of the value; None: that of the policy.")
    value_warmup_updates: int = option(0, "Updates at the start that train the value alone, with the policy frozen.")
    eos_token_ids: list[int] | None = option(
        None,
        "Ids that end a reply. None: those of stop_token, else of the tokenizer and the model's generation config; "
        "[]: every reply runs to response_length.",
    )
    missing_eos_mode: Literal["replace", "subtract"] = option(
        "replace", "A reply without EOS scores -missing_eos_penalty (replace) or that much less (subtract, stock TRL)."
    )
    reward_combination: Literal["mean", "minimum", "mean_minus_spread"] = option(
        "mean",
        "How several reward models make one score: their mean, the lowest, or mean - reward_spread_coef * spread.",
    )
    reward_spread_coef: float = option(
        1.0, "Price of disagreement in mean_minus_spread; the spread is the standard deviation over the reward models."
    )
    reward_center: float = option(
        0.0, "Subtracted from every score; the mean score of reference replies centres rewards."
    )
    reward_scale: float = option(1.0, "Every centred score is divided by this.")
    reward_normalization: Literal["fixed", "running"] = option(
        "fixed", "fixed: use reward_center and reward_scale; running: mean and standard deviation of all scores so far."
    )
    reward_clip: float | None = option(None, "Centred and scaled scores are clipped to +- this; None: not clipped.")
    whiten_advantages: bool = option(True, "Advantages get mean 0 and variance 1 over all tokens of the batch.")
    kl_target: float | None = option(
        None,
        "Nats a reply that the adaptive controller steers the KL to, starting from kl_coef; None: kl_coef is fixed.",
    )
    kl_horizon: int = option(10_000, "Episodes in which the adaptive controller reacts; longer is slower.")
    max_update_kl: float | None = option(
        None, "An update ends early once a minibatch is this far from the rollout policy, in nats a token; None: never."
    )
    rollout_base: Literal["quantized", "dense"] = option(
        "quantized",
        "dense: sample from a copy of the 4-bit base, dequantized once a rollout; faster, for 2 bytes a parameter.",
    )
    logprob_chunk_size: int = option(128, "Reply tokens whose logits over the vocabulary exist at the same time.")
    eval_temperature: float = option(
        1.0, "Temperature of evaluation replies; 0 is greedy. KL is measured at 1 for both 0 and 1."
    )
    eval_prompts: int | None = option(None, "Evaluate on the first so many prompts; None: all of them.")


POSITIVE = (
    *("temperature", "response_length", "num_ppo_epochs", "num_mini_batches", "local_rollout_forward_batch_size"),
    *("reward_scale", "kl_target", "kl_horizon", "logprob_chunk_size", "eval_prompts"),
)


def choices(args: Any) -> dict[str, tuple[Any, ...]]:
    """The fields of the dataclass `args` that are one of a few words, and those words."""
    found = {}
    for name, hint in get_type_hints(type(args)).items():
        members = [hint, *get_args(hint)]
        words = [word for member in members for word in get_args(member) if isinstance(word, str)]
        if words:
            found[name] = (*words, *([None] if type(None) in members else []))
    return found


def long_name(refusal: Refusal, args: Any, prefix: str) -> Refusal:
    """The refusal of a field of `args` under `prefix`, any other refusal as it is."""
    return refusal.under(prefix) if hasattr(args, refusal.key.partition(".")[0]) else refusal


def check_args(args: Any, tokenizer: Any, prefix: str = "") -> None:
    """Raises one ConfigError with every problem of the arguments, named under `prefix`, and of the tokenizer."""
    found = [
        Refusal(name, getattr(args, name), "is not a choice", allowed=allowed)
        for name, allowed in choices(args).items()
        if getattr(args, name) not in allowed
    ]
    values = {name: getattr(args, name) for name in POSITIVE}
    found += [Refusal(name, v, "must be above 0") for name, v in values.items() if v is not None and v <= 0]

    def refuse(key: str, value: Any, why: str, fix: str) -> None:
        found.append(Refusal(key, value, why, fix=fix))

    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None or pad == eos:
        why = "no pad token" if pad is None else f"is EOS too (id {eos}), so a reply would end where padding starts"
        fix = "processing_class.add_special_tokens({'pad_token': '<pad>'})"
        refuse("processing_class.pad_token", tokenizer.pad_token, why, fix)
    if args.stop_token is not None and args.stop_token_id is not None:
        refuse("stop_token", args.stop_token, f"and stop_token_id={args.stop_token_id} are both set", "stop_token=null")
    if args.kl_estimator == "k3":
        why = "in the reward its gradient is biased (arXiv:2512.21852); it is logged as objective/kl_k3"
        refuse("kl_estimator", "k3", why, "kl_estimator=k1")
    if args.fp16:
        refuse("fp16", args.fp16, "needs loss scaling, which this trainer does not have; use bf16", "fp16=false")
    if args.missing_eos_penalty is not None and args.missing_eos_penalty < 0:
        fix = f"missing_eos_penalty={-args.missing_eos_penalty}"
        refuse("missing_eos_penalty", args.missing_eos_penalty, "must not be negative: it is subtracted", fix)
    if (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        key = "activation_checkpointing_kwargs.use_reentrant"
        refuse(key, True, "gives adapters no gradient", f"{key}=false")
    for key in ("fsdp", "deepspeed"):
        if getattr(args, key):
            why = "shards weights, which this trainer does not"
            refuse(key, getattr(args, key), why, f"{key}=null")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        why = "a launcher has started several processes, which haven't met"
        refuse("WORLD_SIZE", os.environ["WORLD_SIZE"], why, "python src/train.py, or rlhf.parallel.ranks.meet first")
    if found:
        raise ConfigError("\n".join(str(long_name(refusal, args, prefix)) for refusal in found))


def eos_token_ids(args: Any, tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Every id that ends a reply in training: those of the arguments, or else of `stops`."""
    if args.eos_token_ids is not None:
        ids = tuple(dict.fromkeys(args.eos_token_ids))
    elif args.stop_token_id is not None:
        ids = (args.stop_token_id,)
    else:
        ids = stops(tokenizer, None if args.stop_token == "eos" else model)
    pad = tokenizer.pad_token_id
    if pad in ids:
        fix = f"eos_token_ids=[{','.join(str(i) for i in ids if i != pad)}]"
        raise Refusal("eos_token_ids", list(ids), f"holds the pad id {pad}, which is never sampled", fix=fix)
    if (penalty := args.missing_eos_penalty) is not None and not ids:
        why = "no id ends a reply, so every reply would pay it; set eos_token_ids or leave it out"
        raise Refusal("missing_eos_penalty", penalty, why, fix="missing_eos_penalty=null")
    return ids


def set_batch_sizes(args: Any, rows: int) -> int:
    """Fills in the sizes that TRL's config leaves open and returns the rows of a micro-batch.

    TRL overwrites these fields when they are set; here one that contradicts is refused. Episodes that do not fill a
    batch are not trained on: the run never exceeds `total_episodes`.
    """
    most, count = args.per_device_train_batch_size, args.num_mini_batches
    batch = most * args.gradient_accumulation_steps
    allowed = [n for n in range(1, batch + 1) if not batch % n and not batch // n % min(most, batch // n)]
    if count not in allowed:
        whole = f"makes minibatches of {batch // count} prompts, which do not split into micro-batches of {most}"
        why = f"does not divide the batch of {batch} prompts" if batch % count else whole
        fewer = max(n for n in allowed if n < count)
        raise Refusal("num_mini_batches", count, why, allowed=allowed, fix=f"num_mini_batches={fewer}")
    minibatch = batch // count
    if args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * rows)
    updates = args.max_steps if args.max_steps > 0 else args.total_episodes // batch
    if rows >= batch and updates < 1:
        why = f"is less than one batch of {batch} prompts"
        raise Refusal("total_episodes", args.total_episodes, why, fix=f"total_episodes={batch}")
    sizes = {"world_size": 1, "micro_batch_size": most, "num_total_batches": updates}
    sizes |= {"local_batch_size": batch, "batch_size": batch}
    sizes |= {"local_mini_batch_size": minibatch, "mini_batch_size": minibatch}
    for name, size in sizes.items():
        if getattr(args, name) not in (None, size):
            why = f"contradicts the {size} that follows from per_device_train_batch_size, gradient_accumulation_steps, "
            why += "num_mini_batches and total_episodes"
            raise Refusal(name, getattr(args, name), why, fix=f"{name}=null")
        setattr(args, name, size)
    return min(most, minibatch)


def parameter_groups(policy: Role, value: Role, args: Any) -> list[dict[str, Any]]:
    """One group a role with its own learning rate, split only where weight decay spares vectors (norms and biases)."""
    value_rate = args.learning_rate if args.value_learning_rate is None else args.value_learning_rate
    groups = []
    for role, rate in ((policy, args.learning_rate), (value, value_rate)):
        parameters = [p for _, p in role.trainable()]
        matrices = [p for p in parameters if p.ndim > 1] if args.weight_decay else parameters
        vectors = [p for p in parameters if p.ndim <= 1] if args.weight_decay else []
        for members, decay in ((matrices, args.weight_decay), (vectors, 0.0)):
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": decay, "role": role.name})
    return groups


def learning_rates(args: Any, optimizer: torch.optim.Optimizer, updates: int) -> Any:
    """The Hugging Face schedule over updates, with warm-up moved by one so that the first update already learns.

    Theirs is 0 at step 0; with a step a rollout, a whole rollout would be spent on it.
    """
    warmup = args.get_warmup_steps(updates)
    theirs = get_scheduler(args.lr_scheduler_type, optimizer, warmup, updates, args.lr_scheduler_kwargs)
    if not warmup or not isinstance(theirs, LambdaLR):
        return theirs
    shape = theirs.lr_lambdas[0]
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr")
    return LambdaLR(optimizer, lambda step: shape(step + 1 if step < warmup else step))
