"""What our PPO can be told beyond TRL's PPOConfig, and how arguments become sizes, parameter groups and learning rates; what cannot work is refused here."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from rlhf.models.roles import Role
from rlhf.models.tokenizer import stops


def option(default, text: str):
    return field(default=default, metadata={"help": text})


def list_option(text: str):
    return field(default=None, metadata={"help": text})


@dataclass
class PPOOptions:
    """Fields that `PPOConfig` adds. They precede TRL's in the class order, so a default here wins over one there."""

    adam_epsilon: float = option(1e-5, "Epsilon of AdamW; 1e-8 gives sign-like first steps to LoRA (arXiv:2403.17031).")
    value_learning_rate: float | None = option(None, "Learning rate of the value; None: that of the policy.")
    value_warmup_updates: int = option(0, "Updates at the start that train the value alone, with the policy frozen.")
    eos_token_ids: list[int] | None = list_option(
        "Ids that end a reply. None: those of stop_token, else of the tokenizer and the model's generation config; "
        "[]: every "
        "reply runs to response_length."
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
        "dense: sample from a copy of the 4-bit base that is dequantized once a rollout; faster for 2 bytes a parameter.",
    )
    logprob_chunk_size: int = option(128, "Reply tokens whose logits over the vocabulary exist at the same time.")
    eval_temperature: float = option(
        1.0, "Temperature of evaluation replies; 0 is greedy. KL is measured at 1 for both 0 and 1."
    )
    eval_prompts: int | None = option(None, "Evaluate on the first so many prompts; None: all of them.")


def check_args(args: Any, tokenizer: Any) -> None:
    """Raises one ValueError with every problem of the arguments and the tokenizer."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    choices = {
        "stop_token": (None, "eos"),
        "missing_eos_mode": ("replace", "subtract"),
        "reward_normalization": ("fixed", "running"),
        "reward_combination": ("mean", "minimum", "mean_minus_spread"),
        "rollout_base": ("quantized", "dense"),
    }
    found = [
        f"{name} = {getattr(args, name)!r} is not allowed ({', '.join(str(c) for c in allowed)})"
        for name, allowed in choices.items()
        if getattr(args, name) not in allowed
    ]
    positive = (
        *("temperature", "response_length", "num_ppo_epochs", "num_mini_batches", "local_rollout_forward_batch_size"),
        *("reward_scale", "kl_target", "kl_horizon", "logprob_chunk_size", "eval_prompts"),
    )
    values = {name: getattr(args, name) for name in positive}
    found += [f"{name} = {value} must be above 0" for name, value in values.items() if value is not None and value <= 0]
    if pad is None:
        found.append("processing_class has no pad token; add_special_tokens({'pad_token': '<pad>'}) gives it one")
    elif pad == eos:
        found.append(f"pad token and EOS are the same id {eos}, so a reply ends where padding starts; add a pad token")
    if args.stop_token is not None and args.stop_token_id is not None:
        found.append("stop_token and stop_token_id are both set; keep one")
    if args.kl_estimator != "k1":
        found.append(
            f"kl_estimator = {args.kl_estimator!r}: k3 in the reward has a biased gradient (arXiv:2512.21852); use "
            "k1; k3 is "
            "logged as objective/kl_k3"
        )
    if args.fp16:
        found.append("fp16 = true needs loss scaling, which this trainer does not have; use bf16")
    if args.missing_eos_penalty is not None and args.missing_eos_penalty < 0:
        found.append(f"missing_eos_penalty = {args.missing_eos_penalty} must not be negative: it is subtracted")
    if (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        found.append("activation_checkpointing_kwargs.use_reentrant = true gives adapters no gradient; use false")
    if args.fsdp or args.deepspeed:
        found.append("fsdp and deepspeed shard over several processes, this trainer runs on one device; leave them out")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        found.append("WORLD_SIZE is above 1: this trainer runs on one device; start one process")
    if found:
        raise ValueError("; ".join(found))


def eos_token_ids(args: Any, tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Every id that ends a reply in training: those of the arguments, or else of `stops`."""
    if args.eos_token_ids is not None:
        ids = tuple(dict.fromkeys(args.eos_token_ids))
    elif args.stop_token_id is not None:
        ids = (args.stop_token_id,)
    else:
        ids = stops(tokenizer, None if args.stop_token == "eos" else model)
    if tokenizer.pad_token_id in ids:
        raise ValueError(
            f"eos_token_ids = {list(ids)} holds the pad id {tokenizer.pad_token_id}, which is never sampled; remove it"
        )
    if args.missing_eos_penalty is not None and not ids:
        raise ValueError(
            "missing_eos_penalty is set but no id ends a reply; set eos_token_ids, or missing_eos_penalty = null"
        )
    return ids


def set_batch_sizes(args: Any, rows: int) -> int:
    """Fills in the sizes that TRL's config leaves open and returns the rows of a micro-batch.

    TRL overwrites these fields when they are set; here one that contradicts is refused. Episodes that do not fill a
    batch are not trained on: the run never exceeds `total_episodes`.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if batch % args.num_mini_batches:
        raise ValueError(f"num_mini_batches = {args.num_mini_batches} does not divide the batch of {batch} prompts")
    minibatch = batch // args.num_mini_batches
    micro = min(args.per_device_train_batch_size, minibatch)
    if minibatch % micro:
        raise ValueError(
            f"a minibatch of {minibatch} prompts does not split into micro-batches of {micro}; change "
            f"per_device_train_batch_size (now {args.per_device_train_batch_size}) or num_mini_batches"
        )
    if args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * rows)
    updates = args.max_steps if args.max_steps > 0 else args.total_episodes // batch
    if rows >= batch and updates < 1:
        raise ValueError(f"total_episodes = {args.total_episodes} is less than one batch of {batch} prompts")
    sizes = {"world_size": 1, "micro_batch_size": args.per_device_train_batch_size, "num_total_batches": updates}
    sizes |= {"local_batch_size": batch, "batch_size": batch}
    sizes |= {"local_mini_batch_size": minibatch, "mini_batch_size": minibatch}
    for name, size in sizes.items():
        if getattr(args, name) not in (None, size):
            raise ValueError(
                f"{name} = {getattr(args, name)} contradicts the {size} that follow from per_device_train_batch_size, "
                "gradient_accumulation_steps, num_mini_batches and total_episodes; set those and leave it out"
            )
        setattr(args, name, size)
    return micro


def parameter_groups(policy: Role, value: Role, args: Any) -> list[dict[str, Any]]:
    """One group a role with its own learning rate, split only where weight decay spares vectors (norms and biases)."""
    value_rate = args.learning_rate if args.value_learning_rate is None else args.value_learning_rate
    rates = ((policy, args.learning_rate), (value, value_rate))
    groups = []
    for role, rate in rates:
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
    theirs = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=warmup,
        num_training_steps=updates,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not warmup or not isinstance(theirs, LambdaLR):
        return theirs
    shape = theirs.lr_lambdas[0]
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr")
    return LambdaLR(optimizer, lambda step: shape(step + 1 if step < warmup else step))
