"""What a script written for TRL's PPO finds in ours: the fields of its PPOConfig, its state, and the name on its card.

TRL 1.12 is the last release that has them (`trl.experimental.ppo`). They are written here in our words, so that PPO runs on later
ones too; `tests/ppo/test_base.py` holds them against TRL's own where it has them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers.trainer_callback import TrainerState
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer

from rlhf.ppo.config import option


@dataclass
class BaseConfig(_BaseConfig):
    """The fields of TRL's PPOConfig, with their names and defaults."""

    learning_rate: float = option(3e-6, "Peak learning rate of AdamW.")
    dataset_num_proc: int | None = option(None, "Processes that prepare rows; ours come prepared.")
    num_mini_batches: int = option(1, "Optimizer steps that a batch is split into, in each of its epochs.")
    total_episodes: int | None = option(None, "Replies to sample in all; None: num_train_epochs times the rows.")
    local_rollout_forward_batch_size: int = option(
        64, "Prompts that are answered, and replies that are scored, at once."
    )
    num_sample_generations: int = option(10, "Samples that stock prints in a run; not used here (eval_strategy).")
    response_length: int = option(53, "Most tokens of a reply.")
    stop_token: Literal["eos"] | None = option(None, "eos: the tokenizer's EOS ends a reply. Excludes stop_token_id.")
    stop_token_id: int | None = option(None, "The id that ends a reply. Excludes stop_token.")
    temperature: float = option(0.7, "Temperature of sampling, and of the log-probabilities that are trained.")
    missing_eos_penalty: float | None = option(None, "What a reply without EOS pays; not negative. None: nothing.")
    sft_model_path: str = option("EleutherAI/pythia-160m", "Read by TRL's example script alone.")
    world_size: int | None = option(None, "Processes; computed.")
    num_total_batches: int | None = option(None, "Updates in all; computed.")
    micro_batch_size: int | None = option(None, "Prompts of a forward pass over all processes; computed.")
    local_batch_size: int | None = option(None, "Prompts of a batch in one process; computed.")
    batch_size: int | None = option(None, "Prompts of a batch over all processes; computed.")
    local_mini_batch_size: int | None = option(None, "Prompts of a minibatch in one process; computed.")
    mini_batch_size: int | None = option(None, "Prompts of a minibatch over all processes; computed.")
    push_to_hub: bool = option(False, "Push the model to the Hub after training.")
    reward_model_path: str = option("EleutherAI/pythia-160m", "Read by TRL's example script alone.")
    model_adapter_name: str | None = option(None, "The adapter of `model` to train, where it has several.")
    ref_adapter_name: str | None = option(None, "The adapter of `model` that is the reference.")
    num_ppo_epochs: int = option(4, "Passes over each batch of replies.")
    whiten_rewards: bool = option(False, "Token rewards get variance 1; their mean stays.")
    kl_coef: float = option(0.05, "Price of a nat of KL from the reference, taken off each token's reward.")
    kl_estimator: Literal["k1", "k3"] = option("k1", "Estimate of that KL (joschu.net/blog/kl-approx.html).")
    cliprange: float = option(0.2, "The ratio of new to old probability is clipped to 1 +- this.")
    vf_coef: float = option(0.1, "Weight of the value's loss.")
    cliprange_value: float = option(0.2, "A new value is clipped to the old one +- this.")
    gamma: float = option(1.0, "Discount of later rewards.")
    lam: float = option(0.95, "Lambda of generalized advantage estimation.")
    ds3_gather_for_generation: bool = option(True, "For DeepSpeed ZeRO-3, which this trainer refuses.")


@dataclass
class OnlineTrainerState(TrainerState):
    """The Trainer's state and `episode`, the replies sampled so far."""

    episode: int = 0


class BaseTrainer(_BaseTrainer):
    """TRL's trainer of no method, with PPO's name, tags and paper on its model card."""

    _tag_names: ClassVar[list[str]] = ["trl", "ppo"]
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Fine-Tuning Language Models from Human Preferences",
        "id": "1909.08593",
        "citation": """\
@article{mziegler2019fine-tuning,
    title        = {{Fine-Tuning Language Models from Human Preferences}},
    author       = {Daniel M. Ziegler and Nisan Stiennon and Jeffrey Wu and Tom B. Brown and Alec Radford and Dario Amodei and Paul F. Christiano and Geoffrey Irving},
    year         = 2019,
    eprint       = {arXiv:1909.08593}
}""",  # noqa: E501
    }

    reference: Any  # a Role

    @contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Within it the adapter of the reference is the one that is on."""
        with self.reference.active():
            yield
