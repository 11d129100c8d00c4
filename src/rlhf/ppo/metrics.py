"""Every number a PPO run logs, defined once: `docs/ppo_metrics.md` is what `python -m rlhf.ppo.metrics` prints."""

METRICS: dict[str, str] = {
    "objective/kl": "KL from the reference in nats a reply: k1 summed over its tokens, mean over replies.",
    "objective/kl_k3": "The same KL by the k3 estimator, which is never negative.",
    "objective/kl_per_token": "k1 averaged over all reply tokens.",
    "objective/sqrt_kl": "Square root of objective/kl_k3, the distance axis of Gao et al. (arXiv:2210.10760).",
    "objective/kl_coef": "The KL coefficient this batch was rewarded with.",
    "objective/entropy": "-log-probability summed over a reply's tokens, mean over replies.",
    "objective/non_score_reward": "The KL part of the reward, summed over a reply, mean over replies.",
    "objective/scores": "Score that the last token is paid: after centring, clipping and the EOS rule.",
    "objective/rlhf_reward": "objective/scores plus objective/non_score_reward.",
    "reward/mean": "Score as the scorer gave it, before any shaping; mean over replies.",
    "reward/std": "Standard deviation of the scorer's scores over the batch.",
    "reward/min": "Lowest score the scorer gave.",
    "reward/max": "Highest score the scorer gave.",
    "reward/length_correlation": "Correlation of score and reply length; above 0.5 hints at length hacking.",
    "length/mean": "Tokens a reply, EOS included.",
    "length/p95": "95th percentile of tokens a reply.",
    "length/max": "Longest reply in tokens.",
    "length/clip_ratio": "Fraction of replies cut off at response_length.",
    "length/eos_rate": "Fraction of replies that ended with an EOS id.",
    "text/distinct_2": "Different pairs of neighbouring tokens over all pairs; a collapse to one text lowers it.",
    "text/repeat_4": "Fraction of 4-grams that repeat an earlier one of the same reply.",
    "text/reference_perplexity": "Perplexity of reply tokens under the reference; a drop to 1 is a collapse.",
    "loss/policy_avg": "Clipped policy loss, mean over tokens and optimizer steps.",
    "loss/value_avg": "Clipped value loss (without vf_coef), mean over tokens and optimizer steps.",
    "policy/approxkl_avg": "Half the mean squared change of log-probabilities since the rollout, over all steps.",
    "policy/approx_kl_k3": "KL of the rollout policy to the policy in training by k3, nats a token, over all steps.",
    "policy/clipfrac_avg": "Fraction of tokens at which the clipped policy loss is the active one.",
    "policy/entropy_avg": "Entropy of the next-token distribution at rollout, nats, mean over tokens.",
    "policy/ratio_max": "Largest of ratio and 1/ratio over all tokens and steps.",
    "policy/ratio_max_first": "The same in the first minibatch, before any step: 1 exactly, or two passes disagree.",
    "policy/grad_norm": "Norm of the policy's gradient before clipping, mean over steps.",
    "val/ratio": "Mean ratio of new to old probability over tokens and steps.",
    "val/ratio_var": "Variance of that ratio.",
    "val/clipfrac_avg": "Fraction of tokens at which the clipped value loss is the active one.",
    "val/num_eos_tokens": "Replies that ended with an EOS id, as a count.",
    "value/grad_norm": "Norm of the value's gradient before clipping, mean over steps.",
    "value/explained_variance": "1 - Var(return - value) / Var(return) at rollout; below 0 the critic is noise.",
    "value/mean": "Mean value at rollout.",
    "value/return_mean": "Mean return at rollout.",
    "mismatch/rollout_vs_train_mean_abs": "Mean absolute difference of log-probabilities, decoding to training.",
    "mismatch/mult_prob_error": "Mean of exp of that difference; above 1.05 the two disagree (NeMo-RL).",
    "update/optimizer_steps": "Optimizer steps of this update.",
    "update/stopped_early": "1 if max_update_kl ended this update, else 0.",
    "update/value_only": "1 if this update trained the value alone, else 0.",
    "time/rollout": "Seconds spent decoding.",
    "time/score": "Seconds spent on scores, log-probabilities and values before training.",
    "time/update": "Seconds spent on gradient steps.",
    "time/tokens_per_second": "Reply tokens over the seconds of the whole update.",
    "memory/peak_mb": "Peak memory so far in megabytes: of the GPU's allocator, or of the process on the CPU.",
    "memory/peak_rollout_mb": "The same when the rollout of this update had ended.",
    "memory/peak_score_mb": "The same when scores and log-probabilities were there; what is above belongs to the steps.",
    "lr": "Learning rate of the policy in this update.",
    "lr_value": "Learning rate of the value in this update.",
    "eps": "Episodes a second since the start of this process.",
    "episode": "Replies generated for training so far.",
    "eval_objective/scores": "Mean score of evaluation replies as the scorer gave it.",
    "eval_objective/kl": "KL of evaluation replies from the reference, nats a reply, k1.",
    "eval_objective/kl_k3": "The same by k3.",
    "eval_objective/length": "Tokens an evaluation reply.",
    "eval_objective/eos_rate": "Fraction of evaluation replies that ended with an EOS id.",
    "eval_runtime": "Seconds of the evaluation.",
}


def page() -> str:
    """The definitions as Markdown."""
    rows = "".join(f"| `{name}` | {text} |\n" for name, text in METRICS.items())
    return (
        "# What a PPO run logs\n\n"
        "A line of `metrics.jsonl` each `logging.steps` updates, one for each evaluation (`eval_...`), and the tracker's.\n"
        "`samples.jsonl` has the evaluations' replies. Reply tokens only: neither prompts nor padding enter a number.\n\n"
        f"| metric | definition |\n|---|---|\n{rows}"
    )


def checked(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics given, refused if one of them is not defined above."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise KeyError(f"metrics {unknown} are logged but not defined in rlhf.ppo.metrics.METRICS")
    return metrics


if __name__ == "__main__":
    print(page(), end="")
