"""What our PPO can be told beyond TRL's PPOConfig: one field a decision, each with its effect."""

from dataclasses import dataclass, field
from typing import Literal


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


class NonFinite(FloatingPointError):
    """A reward, loss or gradient that is NaN or infinite; raised before the step, while the weights are good, and in an
    evaluation before its checkpoint is saved."""

    def __init__(self, metric: str, value: float, update: int) -> None:
        super().__init__(
            f"{metric} is {value} in update {update}; stopped before another optimizer step. The last checkpoint is "
            "untouched: "
            "resume from it with a lower learning_rate or a reward_clip"
        )
        self.metric, self.value, self.update = metric, value, update
