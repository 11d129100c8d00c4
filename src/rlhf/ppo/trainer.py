"""PPO for language models: TRL's PPOTrainer from the outside, our own loop inside.

One update (`loop.Loop.update`): sample replies, score them, take old and reference log-probabilities and values in the
micro-batches of training (`update.collect`), turn them into advantages (`objective`), and make `num_ppo_epochs *
num_mini_batches` optimizer steps. What TRL's own classes would give it, `base` does: TRL has had no PPO since 1.13.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, ExportableState, PrinterCallback, TrainerControl
from transformers.trainer_utils import TrainOutput

from rlhf.errors import Refusal
from rlhf.evaluation.samples import write_samples
from rlhf.files import PREFIX, rotate, write_complete
from rlhf.generation.logprobs import Forward
from rlhf.models.roles import Role, save_role
from rlhf.parallel import ranks
from rlhf.ppo import checkpoint, config
from rlhf.ppo.assembly import assemble
from rlhf.ppo.base import BaseConfig, BaseTrainer, OnlineTrainerState
from rlhf.ppo.config import PPOOptions
from rlhf.ppo.evaluation import evaluate
from rlhf.ppo.loop import Loop, PromptOrder, check_prompts
from rlhf.ppo.metrics import checked
from rlhf.ppo.objective import KLController
from rlhf.rewards.scorers import Combined, RoleScorer


@dataclass
class PPOConfig(PPOOptions, BaseConfig):
    """TRL's PPOConfig with our options.

    Kept from TRL: one batch is per_device_train_batch_size * gradient_accumulation_steps prompts, and num_mini_batches
    splits it, here into real optimizer steps. `num_sample_generations` is not used: evaluation runs on `eval_strategy`.
    """


class PPOTrainer(BaseTrainer):
    """A drop-in for TRL's PPOTrainer; each of the models may also be a `Role`, and the reward any `Scorer`, or a
    list of rewards.

    Construction checks everything that can be checked without a step. What TRL does and this does not: DeepSpeed, FSDP, fp16 (needs
    loss scaling; use bf16). Several processes are those of `rlhf.parallel`, as src/train.py starts them.
    """

    def __init__(
        self,
        args: Any,
        processing_class: Any,
        model: Any,
        ref_model: Any,
        reward_model: Any,
        train_dataset: Any,
        value_model: Any,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[Any] | None = None,
        peft_config: Any = None,
    ) -> None:
        self.args, self.processing_class = args, processing_class
        self.train_dataset, self.eval_dataset, self.data_collator = train_dataset, eval_dataset, data_collator
        self.eval_datasets = by_name(eval_dataset)
        config.check_args(args, processing_class)
        self.micro_batch_size = config.set_batch_sizes(args, len(train_dataset))
        self.prompts = PromptOrder(len(train_dataset), args.batch_size, args.seed)
        self.accelerator = Accelerator(cpu=args.use_cpu)
        given = (model, ref_model, reward_model, value_model)
        self.policy, self.reference, rewards, self.value = assemble(
            *given, peft_config, args.device, len(processing_class), (args.model_adapter_name, args.ref_adapter_name)
        )
        # what callbacks, the model card and integrations see
        self.model = self.policy_model = self.policy.peft or self.policy.model
        self.ref_model, self.reward_model, self.value_model = self.reference.model, reward_model, self.value.model
        # TRL's `trainer.model` wraps both; here it is the policy, and these are views, which its state_dict doesn't hold
        vars(self.model).update(policy=self.model, value_model=self.value.peft or self.value.model)
        self.is_peft_model = self.policy.peft is not None
        self.model_adapter_name, self.ref_adapter_name = self.policy.adapter, self.reference.adapter
        self._check_prompts()
        self.optimizer, self.lr_scheduler = optimizers
        self.optimizer_cls_and_kwargs = None
        self.create_optimizer_and_scheduler(args.num_total_batches)
        self.loop = self._build_loop(rewards)
        self._build_callbacks(callbacks)
        self.hub_model_id, self.hp_search_backend, self.current_flos = None, None, 0
        self.is_deepspeed_enabled = self.is_fsdp_enabled = False
        if args.push_to_hub:
            self.init_hf_repo()
        os.makedirs(args.output_dir, exist_ok=True)

    # Setting up

    def _check_prompts(self) -> None:
        config = self.policy.model.config.get_text_config()
        limits = {
            "response_length": self.args.response_length,
            "context": getattr(config, "max_position_embeddings", None),
            "vocabulary": self.policy.embeddings,
        }
        check_prompts(self.train_dataset, "train_dataset", **limits)
        for name, dataset in self.eval_datasets.items():
            check_prompts(dataset, f"eval_dataset {name}".strip(), **limits)

    def _build_loop(self, rewards: list[Any]) -> Loop:
        args, pad_id = self.args, self.processing_class.pad_token_id
        shared = (pad_id, self.micro_batch_size, self.autocast)
        scorers = [RoleScorer(reward, *shared) if isinstance(reward, Role) else reward for reward in rewards]
        return Loop(
            args=args,
            policy=self.policy,
            reference=self.reference,
            value=self.value,
            scorer=Combined(scorers, args.reward_combination, args.reward_spread_coef),
            dataset=self.train_dataset,
            order=self.prompts,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            eos_ids=config.eos_token_ids(args, self.processing_class, self.policy.model),
            pad_id=pad_id,
            micro_batch_size=self.micro_batch_size,
            forward=Forward(args.temperature, (pad_id,), args.logprob_chunk_size, self.autocast),
            kl_controller=KLController(args.kl_coef, args.kl_target, args.kl_horizon),
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.policy.model)
            self.optimizer = optimizer_class(config.parameter_groups(self.policy, self.value, self.args), **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = config.learning_rates(self.args, optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler

    def _build_callbacks(self, callbacks: list[Any] | None) -> None:
        every = DEFAULT_CALLBACKS + get_reporting_integration_callbacks(self.args.report_to) + (callbacks or [])
        trained = (self.model, self.processing_class, self.optimizer, self.lr_scheduler)
        self.callback_handler = CallbackHandler(every, *trained)
        self.add_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.control = TrainerControl()
        self.state = OnlineTrainerState(
            is_local_process_zero=self.is_local_process_zero(), is_world_process_zero=self.is_world_process_zero()
        )

    def autocast(self) -> Any:
        """The one autocast that every pass of every role runs in: bf16 if asked for, on this device."""
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=bool(self.args.bf16))

    # Training

    def train(self, resume_from_checkpoint: bool | str | None = None, **_: Any) -> Any:
        """Trains for `num_total_batches` updates, from the start or from a complete checkpoint (True: the newest)."""
        args = self.args
        if resume_from_checkpoint:
            checkpoint.restore(self, checkpoint.find(resume_from_checkpoint, Path(args.output_dir)))
            self._load_callback_state()
        self.state.max_steps = args.num_total_batches
        self.state.num_train_epochs = args.total_episodes / self.prompts.rows
        self.state.compute_steps(args, self.state.max_steps)
        self.state.train_batch_size = args.per_device_train_batch_size
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        start, first, losses = time.time(), self.state.episode, []
        for role in (self.policy, self.value):
            for pair in role.trainable():
                ranks.same(pair[1].data)
        with self._checkpointing():
            while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
                update = self.state.global_step + 1
                if (update - 1) % self.prompts.updates_per_epoch == 0:
                    self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
                self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                logs = self.loop.update(update)
                self.state.global_step, self.state.episode = update, self.state.episode + args.batch_size
                self.state.epoch = self.state.episode / self.prompts.rows
                logs["episode"] = self.state.episode
                logs["eps"] = (self.state.episode - first) / (time.time() - start)
                losses.append(logs.get("loss/policy_avg", 0.0))
                self._after_update(checked(logs))
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        if args.load_best_model_at_end and self.state.best_model_checkpoint:
            checkpoint.restore_weights(self, Path(self.state.best_model_checkpoint))
        runtime = {"train_runtime": time.time() - start}
        return TrainOutput(self.state.global_step, sum(losses) / max(len(losses), 1), runtime)

    def _after_update(self, logs: dict[str, float]) -> None:
        """Log, evaluate and save, each when its callback says so."""
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if self.state.global_step % self.prompts.updates_per_epoch == 0:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        if self.control.should_log:
            self.log(logs)
        if self.control.should_evaluate:
            is_best = self._determine_best_metric(self.evaluate(), trial=None)
            if self.args.save_strategy == "best":
                self.control.should_save = is_best
        if self.control.should_save:
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Gradient checkpointing for the trained models; it acts in train mode, which only `Loop.optimize` enters."""
        models = {id(role.model): role.model for role in (self.policy, self.value)}.values()
        before = [model.is_activation_checkpointing for model in models]
        try:
            if self.args.activation_checkpointing:
                options = {"use_reentrant": False} | (self.args.activation_checkpointing_kwargs or {})
                for model in models:
                    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
            yield
        finally:
            for model, was_on in zip(models, before, strict=True):
                if not was_on:
                    model.activation_checkpointing_disable()

    # Evaluating and saving

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Samples replies to the evaluation prompts, logs `eval_objective/...` and appends to `samples.jsonl`."""
        args, step, logs = self.args, self.state.global_step, {}
        given = by_name(eval_dataset) or self.eval_datasets
        if not given:
            raise Refusal("eval_dataset", None, "there is nothing to evaluate on", fix="pass one, or eval_strategy=no")
        for name, dataset in given.items():
            start = time.time()
            count = len(dataset) if args.eval_prompts is None else min(args.eval_prompts, len(dataset))
            values, samples = evaluate(self.loop, [dataset[i] for i in range(count)], self.processing_class, step)
            values["eval_runtime"] = time.time() - start
            prefix = f"{metric_key_prefix}_{name}_" if name else f"{metric_key_prefix}_"
            logs |= {prefix + key.removeprefix("eval_"): value for key, value in checked(values).items()}
            write_samples(Path(args.output_dir), step, name, samples)
        self.log(dict(logs))
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, logs)
        return logs

    def generate_completions(self, sampling: bool = False) -> None:
        """TRL's name for looking at samples: an evaluation, whose texts go to `samples.jsonl`."""
        if self.eval_datasets:
            self.evaluate()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy at the top of the folder as Hugging Face users expect it, the value in `value/`, the tokenizer."""
        folder = Path(output_dir or self.args.output_dir)
        save_role(self.policy, folder)
        save_role(self.value, folder / "value")
        self.processing_class.save_pretrained(str(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As in TRL, the model card of the run folder is rewritten each time; it is never the only copy of anything."""
        output = Path(self.args.output_dir)
        folder = output / f"{PREFIX}{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(output / f"{PREFIX}{self.state.best_global_step}")
        stateful = [cb for cb in [*self.callback_handler.callbacks, self.control] if isinstance(cb, ExportableState)]
        states: Any = {type(cb).__name__: cb.state() for cb in stateful}
        self.state.stateful_callbacks = states

        def write(partial: Path) -> None:
            self.save_model(str(partial))
            checkpoint.write_state(self, partial)

        with ranks.agreed():  # the state knows of no ranks, so any number of them goes on from it
            if ranks.is_main():
                self.create_model_card(model_name=output.name)
                write_complete(folder, write)
                rotate(output, self.args.save_total_limit, self.state.best_model_checkpoint)


def by_name(dataset: Any) -> dict[str, Any]:
    """One evaluation set, several by name, or none, as a dict of them."""
    return dataset if isinstance(dataset, dict) else {"": dataset} if dataset else {}
