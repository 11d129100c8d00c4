"""What stages train with, a page each."""

from rlhf.ppo.metrics import METRICS

_REPLIES = {"length", "eos_rate", "distinct_2", "gold_score", "known_words"}
_EVERY = {"train_loss", "held_out_loss", "eval_loss", "loss", "learning_rate", "grad_norm", "epoch"}
_REWARDS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
}

# What a stage leaves in results.json or metrics.jsonl, by method. The smoke runs of the tests hold this against what is there.
LOGGED: dict[str, set[str]] = {
    "sft": _EVERY
    | (_REPLIES - {"kl"})
    | {"mean_token_accuracy", "eval_mean_token_accuracy", "entropy", "eval_entropy"},
    "reward": _EVERY
    | {"accuracy", "mean_margin", "accuracy_true", "accuracy_noisy", "annotator_accuracy", "margin", "min_reward"}
    | {
        "mean_reward",
        "max_reward",
        "eval_accuracy",
        "eval_margin",
        "eval_min_reward",
        "eval_mean_reward",
        "eval_max_reward",
    },
    "dpo": _EVERY | _REPLIES | {"kl"} | _REWARDS | {f"eval_{name}" for name in _REWARDS},
    "ppo": _REPLIES | {"kl"} | set(METRICS),
}

# in report.json, of a policy whose recipe has a reward stage or an annotator
REPORTED = {"reward_score", "win_rate_vs_sft"}
