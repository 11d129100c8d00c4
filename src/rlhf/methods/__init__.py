"""What stages train with: a row a method, and a page `rlhf.methods.<name>` for each.

The table holds strings and plain data and imports no page, so every room may read it. `docs/adding.md` shows how to add one.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import Any

# since 1.15 no loss_type of TRL's own trainers holds the logits of whole sequences; 1.12 does it so for SFT's default alone
FUSED = tuple(int(part) for part in version("trl").split(".")[:2]) >= (1, 15)
TILE = 256  # tokens whose logits are in memory at once: in TRL 1.12's SFT (sft_trainer:88), and in 1.15 and later on a CPU (`head`)
LOGITS = 8192  # that `chunk` may have for each number of a hidden state: of a large vocabulary a chunk has fewer tokens
REPLIES = {"length", "eos_rate", "distinct_2", "gold_score", "known_words"}
LOSSES = {"train_loss", "held_out_loss", "eval_loss", "loss", "learning_rate", "grad_norm", "epoch"}
_TOKENS = {"mean_token_accuracy", "entropy"}
_SCORES = {"accuracy", "margin", "min_reward", "mean_reward", "max_reward"}
_LOGPS = {"logps/chosen", "logps/rejected"}
PAIRS = _LOGPS | {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"}
# In report.json, of a policy whose recipe has a reward stage or an annotator.
REPORTED = {"reward_score", "win_rate_vs_sft"}


def held_out(names: Set[str]) -> set[str]:
    """The names and those of the same numbers on held-out rows."""
    return {*names, *(f"eval_{name}" for name in names)}


# of PPOConfig: compilers and kernels, loaders and samplers, what only Trainer's evaluation does, and examples that stock PPO prints
_TRAINERS = (
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config",
    "use_cache", "optim_target_modules", "neftune_noise_alpha", "auto_find_batch_size", "torch_empty_cache_steps",
    "debug", "full_determinism", "gradient_checkpointing_kwargs", "bf16_full_eval", "fp16_full_eval", "eval_on_start",
    "eval_accumulation_steps", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics",
    "eval_use_gather_object", "label_names", "dataloader_num_workers", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "dataloader_drop_last", "dataloader_multiprocessing_context", "dataset_num_proc",
    "train_sampling_strategy", "save_only_model", "save_on_each_node", "enable_jit_checkpoint", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "include_num_input_tokens_seen", "num_sample_generations",
    "sft_model_path", "reward_model_path",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What the rest of the code asks about a method; `module:name` is imported when it is used.

    - `build`: the function (stage, tokenizer, data) -> trainer; `config`: the dataclass of `method.args`
    - `rows`: what a row of its data is: demonstrations, pairs, thumbs or prompts
    - `fewest`: rows that a forward pass needs, where the default loss_type looks at neighbours
    - `roles`: models in memory, of policy, reference, reward and value; `trained`: those that learn
    - `logged`: numbers it leaves in results.json or metrics.jsonl; a `module:name` among them is a mapping of such names
    - `leaves`: what final/ holds: a policy, which can be asked, or a reward model
    - `reward`: what the monitor watches: replies that are `scored`, or the `implicit` beta * log(policy / reference)
    - `options`: keys of the group `method` that not every method reads: learn, kwise, reward_model, reward_label,
      reference
    - `reply_length`: the argument with the longest reply that is sampled in training
    - `own_loop`: trains by rlhf.ppo and not TRL: updates of episodes, an evaluation of its own, one device
    - `dropout`: whether the adapter's dropout stays on
    - `chunked`: whether the default loss_type, or any (FUSED), never holds the logits of a whole sequence
    - `smoothed`: each loss_type that reads label_smoothing, where the others ignore it without a word
    - `lean`: whether LoRA layers keep their input once (rlhf.models.layers)
    - `chunk`: tokens whose logits are in memory at once where replies are read by rlhf.generation; PPO's is an argument
    - `trls`: fields of `config` that, with another value than none, false or the default, need the pass of TRL's own trainer
    - `measured`: whether the benchmark holds its planned memory against a measured peak
    - `unread`: fields of `config` that stand there for TRL's trainers, and that this method's own loop has no use for
    - `defaults`: of fields of `config` that the preflight reads, where they are this method's alone
    """

    build: str
    config: str
    rows: str
    roles: tuple[str, ...]
    trained: tuple[str, ...]
    logged: Set[str]
    leaves: str = "policy"
    reward: str | None = None
    options: tuple[str, ...] = ()
    reply_length: str | None = None
    fewest: int = 1
    own_loop: bool = False
    dropout: bool = False
    chunked: bool = False
    smoothed: tuple[str, ...] = ()
    lean: bool = False
    chunk: int = 0
    trls: tuple[str, ...] = ()
    measured: bool = False
    unread: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> set[str]:
        """Every name that `expect` may hold."""
        return {one for name in self.logged for one in (resolve(name) if ":" in name else [name])}


METHODS: dict[str, Method] = {
    "sft": Method(
        build="rlhf.methods.sft:build",
        config="trl.trainer.sft_config:SFTConfig",
        rows="demonstrations",
        roles=("policy",),
        trained=("policy",),
        logged=LOSSES | REPLIES | held_out(_TOKENS),
        options=("learn",),
        dropout=True,
        chunked=True,
        lean=True,
        chunk=128,
        trls=(
            "packing",
            "padding_free",
            "eval_packing",
            "loss_type",
            "use_liger_kernel",
            "neftune_noise_alpha",
            "torch_compile",
        ),
        measured=True,
        defaults={"loss_type": "nll" if FUSED else "chunked_nll"},
    ),
    "reward": Method(
        build="rlhf.methods.reward:build",
        config="trl.trainer.reward_config:RewardConfig",
        rows="pairs",
        roles=("reward",),
        trained=("reward",),
        logged=LOSSES | held_out(_SCORES) | {"mean_margin", "accuracy_true", "accuracy_noisy", "annotator_accuracy"},
        leaves="reward",
        options=("kwise",),
        lean=True,
        measured=True,
    ),
    "dpo": Method(
        build="rlhf.methods.dpo:build",
        config="trl.trainer.dpo_config:DPOConfig",
        rows="pairs",
        roles=("policy", "reference"),
        trained=("policy",),
        logged=LOSSES | REPLIES | {"kl"} | held_out(PAIRS),
        options=("kwise",),
        reward="implicit",
        smoothed=("aot", "aot_unpaired", "exo_pair", "robust"),  # trl/trainer/dpo_trainer.py:1487-1542
        lean=True,
        chunk=128,
        trls=("use_weighting",),
        chunked=FUSED,
        measured=True,
        defaults={"loss_type": ["sigmoid"]},
    ),
    "kto": Method(
        build="rlhf.methods.kto:build",
        config="trl.trainer.kto_config:KTOConfig",
        rows="thumbs",
        roles=("policy", "reference"),
        trained=("policy",),
        logged=LOSSES | REPLIES | held_out((PAIRS - {"rewards/accuracies"}) | {"kl", "entropy"}),
        reward="implicit",
        fewest=2,
        chunked=FUSED,
        defaults={"loss_type": "kto"},
    ),
    "ppo": Method(
        build="rlhf.methods.ppo:build",
        config="rlhf.ppo.trainer:PPOConfig",
        rows="prompts",
        roles=("policy", "reference", "reward", "value"),
        trained=("policy", "value"),
        logged=REPLIES | {"kl", "rlhf.ppo.metrics:METRICS"},
        reward="scored",
        options=("reward_model", "reward_label", "reference"),
        reply_length="response_length",
        own_loop=True,
        lean=True,
        measured=True,
        unread=_TRAINERS,
    ),
}


def resolve(place: str) -> Any:
    """What `module:name` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def build(stage: Any, tokenizer: Any, data: Any) -> Any:
    """The trainer of a stage on the rows that were prepared for it."""
    if FUSED and stage.hardware.device == "cpu":
        resolve("rlhf.methods.head:small_tiles")()
    return resolve(METHODS[stage.method.name].build)(stage, tokenizer, data)
