"""From YAML to the config classes of TRL: `method.args` over our defaults, and what follows from the other keys."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from rlhf.config import Stage, checked, split_batch
from rlhf.errors import ConfigError, Refusal, StageError
from rlhf.methods import METHODS, resolve
from rlhf.models.adapters import lora_config
from rlhf.models.base import quantization_config
from rlhf.shell import element, setting

# Fields of TRL's configs that are arithmetic or placement: they follow from our own keys and are never written twice.
COMPUTED = {
    "output_dir": "run.root, run.recipe and run.stage",
    "per_device_train_batch_size": "batch_size and hardware.micro_batch_size",
    "per_device_eval_batch_size": "hardware.micro_batch_size",
    "gradient_accumulation_steps": "batch_size and hardware.micro_batch_size",
    "local_rollout_forward_batch_size": "hardware.micro_batch_size",
    "bf16": "hardware.precision",
    "fp16": "hardware.precision",
    "use_cpu": "hardware.device",
    "gradient_checkpointing": "hardware.gradient_checkpointing",
    "seed": "seed",
    "data_seed": "seed",
    "report_to": "logging.report_to",
    "logging_steps": "logging.steps",
    "max_length": "dataset.max_length",
    "run_name": "run.recipe and run.stage",
    "eos_token": "model.eos_token",
    "pad_token": "model.pad_token",
    "chat_template_path": "model.chat_template",
    "model_init_kwargs": "the groups model and quantization",
    "hub_token": "the environment variable HF_TOKEN, so that no token reaches a file",
    "trust_remote_code": "model.trust_remote_code",
    "disable_tqdm": "what prints: a line a step, in place of a bar",
    "logging_nan_inf_filter": "the guard that stops at a loss which is no number",
    "resume_from_checkpoint": "the run folder: a stage that is started again goes on by itself",
}
# and those that have no place here: why, and what does it instead
UNSUITED = {
    "push_to_hub": (
        "a run writes into its folder only",
        "hf upload <user>/<name> <run folder>/final, once it has finished",
    ),
    "parallelism_config": ("one process trains on one device here", "null"),
    "length_column_name": ("rows have their length in tokens in a column of that name already", "null"),
    "label_smoothing_factor": (
        "the losses here know nothing of it",
        "method.args.label_smoothing= where the method has it",
    ),
}


def config_class(method: str) -> type:
    """The dataclass that holds a method's arguments."""
    return resolve(METHODS[method].config)


def training_arguments(stage: Stage, evaluates: bool = False, **computed: Any) -> Any:
    """The trainer's arguments: our defaults, `method.args` over them, and what follows from the other keys.

    A stage saves and evaluates four times on its way unless `method.args` says otherwise.
    """
    micro, passes = split_batch(stage)
    cls = config_class(stage.method.name)
    settings = method_arguments(stage)
    known = {field.name for field in dataclasses.fields(cls)}
    defaults = {
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 2,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": 0.25,
    }
    placed = {
        "output_dir": stage.path.as_posix(),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": passes * stage.hardware.devices,  # each rank makes its share of them
        "local_rollout_forward_batch_size": micro,
        "gradient_checkpointing": stage.hardware.gradient_checkpointing,
        "bf16": stage.hardware.precision == "bf16",
        "fp16": False,
        "use_cpu": stage.hardware.device == "cpu",
        "seed": stage.seed,
        "report_to": stage.logging.report_to,
        "run_name": f"{stage.run.recipe}/{stage.run.stage}",
        "logging_steps": stage.logging.steps,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "trust_remote_code": stage.model.trust_remote_code,
    }
    if stage.debug.max_steps is not None:
        placed["max_steps"] = stage.debug.max_steps
        placed["total_episodes"] = stage.debug.max_steps * stage.batch_size
    placed = {key: value for key, value in placed.items() if key in known}
    try:
        args = cls(**(defaults | settings | placed | computed))
        if args.n_gpu > 1:  # one process would give each GPU that it sees a batch of its own
            args._n_gpu = 1
        return args
    except Exception as error:  # it only holds values, so what it raises is about them
        name, reason = f"{cls.__module__.split('.')[0]}.{cls.__name__}", str(error).partition("\n")[0]
        why = f"refused by {name}: {reason or type(error).__name__}"
        for key, value in settings.items():
            try:
                cls(**(defaults | placed | computed | {key: value}))
            except Exception as alone:
                if str(alone) == str(error):
                    raise Refusal(f"method.args.{key}", element(value), why) from error
        raise ConfigError(f"method.args is {why}") from error


def try_arguments(stage: Stage, args: Any) -> None:
    """Make of nothing what a trainer makes of its arguments: an optimizer, a schedule, a loader, a compiler.

    Raises:
        Refusal: one of them can't be made; the trainer would find out when the old run is gone already.
    """
    import torch
    from accelerate.utils import DynamoBackend
    from torch.utils.data import DataLoader
    from transformers import Trainer, get_scheduler
    from transformers.utils import logging
    from transformers.utils.import_utils import is_liger_kernel_available

    def optimizer() -> torch.optim.Optimizer:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        return kind([torch.nn.Parameter(torch.zeros(1))], **options)

    def schedule() -> Any:
        plain, more = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), args.lr_scheduler_kwargs
        return get_scheduler(args.lr_scheduler_type, plain, 1, 2, scheduler_specific_kwargs=dict(more or {}))

    def loader() -> Any:
        keys = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
        return DataLoader([0], **{key: getattr(args, f"dataloader_{key}", None) for key in keys})  # type: ignore

    def mode() -> None:
        from torch._inductor import list_mode_options

        _among(list_mode_options(), args.torch_compile_mode)

    def compiler() -> None:
        reads = stage.method.name == "dpo" and stage.adapter.name != "none"
        if args.torch_compile and reads and not args.precompute_ref_log_probs:
            why = "TRL 1.12 finds no adapter in a compiled model, and so no reference"  # dpo_trainer.py:1404
            raise ValueError(f"{why}: method.args.precompute_ref_log_probs=true, or adapter=none")
        if args.torch_compile:
            kinds = {"backend": args.torch_compile_backend, "mode": args.torch_compile_mode}
            torch.compile(torch.sin, **kinds)(torch.zeros(1, device=args.device))

    def weighting() -> None:
        if args.use_weighting and "sft" in args.loss_type:
            raise ValueError(
                "TRL 1.12 weights a loss of pairs in place, which the loss_type sft is not: take one of them out"
            )

    def offloading() -> None:
        if args.activation_offloading and args.use_cpu:
            raise ValueError("there is no GPU to take activations from")

    def divergence() -> None:
        _among(["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"], args.f_divergence_type)

    def liger() -> None:
        if args.use_liger_kernel and not is_liger_kernel_available():
            raise ImportError("the package is not there: python -m pip install liger-kernel")

    trials = {
        "optim optim_args": optimizer,
        "lr_scheduler_type lr_scheduler_kwargs": schedule,
        "dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context": loader,
        "use_liger_kernel": liger,
        "use_weighting": weighting,
        "activation_offloading": offloading,
        "f_divergence_type": divergence,
        "log_level": lambda: _among(["passive", *logging.get_log_levels_dict()], args.log_level),
        "log_level_replica": lambda: _among(["passive", *logging.get_log_levels_dict()], args.log_level_replica),
        "torch_compile_backend": lambda: _among(
            [one.value.lower() for one in DynamoBackend], args.torch_compile_backend
        ),
        "torch_compile_mode": mode,
        "torch_compile_mode torch_compile_backend torch_compile": compiler,
    }
    given = stage.method.args
    for key, value in given.items():
        if key.endswith("_kwargs") and value is not None and not isinstance(value, dict):
            raise Refusal(
                f"method.args.{key}", element(value), "is no mapping", fix=setting(f"method.args.{key}", {"a": 1})
            )
    for keys, make in trials.items():
        if not given.keys() & set(keys.split()):
            continue
        try:
            make()
        except Exception as error:  # of any library
            key = next(key for key in reversed(keys.split()) if key in given)
            why = str(error).partition("\n")[0] or type(error).__name__
            raise Refusal(f"method.args.{key}", element(given[key]), why) from error


def named(stage: Stage, error: BaseException) -> Refusal | None:
    """An error of a library that names a setting of `method.args`, as a Refusal of that setting; None for any other."""
    key = next((key for key in stage.method.args if re.search(rf"\b{key}\b", str(error))), None)
    if isinstance(error, StageError) or key is None:
        return None
    return Refusal(f"method.args.{key}", element(stage.method.args[key]), str(error).partition("\n")[0].strip("'\""))


def _among(known: Iterable[str], value: Any) -> None:
    if value is not None and value not in known:
        raise ValueError(f"not one of {', '.join(known)}")


def method_arguments(stage: Stage) -> dict[str, Any]:
    """`method.args`, with the types of the trainer's config class."""
    for key, (why, fix) in UNSUITED.items():
        if value := stage.method.args.get(key):
            raise Refusal(f"method.args.{key}", element(value), why, fix=fix)
    for key in sorted(COMPUTED.keys() & stage.method.args.keys()):
        raise ConfigError(f"method.args.{key} is not set by hand; it follows from {COMPUTED[key]}")
    config, length = config_class(stage.method.name), METHODS[stage.method.name].reply_length
    found = checked(config, dict(stage.method.args), "method.args")
    return found | ({length: stage.debug.shortened(found.get(length, getattr(config, length)))} if length else {})


def check_arguments(stage: Stage) -> None:
    """Raise a ConfigError if a key of `method.args`, `adapter.args` or `quantization.args` is unknown or of the wrong type."""
    method_arguments(stage)
    quantization_config(stage)
    if stage.adapter.name == "lora":
        lora_config(stage, "CAUSAL_LM")
