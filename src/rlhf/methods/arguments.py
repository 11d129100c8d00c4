"""From YAML to the config classes of TRL: `method.args` over our defaults, and what follows from the other keys."""

import dataclasses
from typing import Any

from rlhf.config import Stage, checked, split_batch
from rlhf.errors import ConfigError
from rlhf.methods import METHODS, resolve
from rlhf.models.adapters import lora_config
from rlhf.models.base import quantization_config

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
    "resume_from_checkpoint": "the run folder: a stage that is started again goes on by itself",
}


def config_class(method: str) -> type:
    """The dataclass that holds a method's arguments."""
    return resolve(METHODS[method].config)


def training_arguments(stage: Stage, evaluates: bool = False, **computed: Any) -> Any:
    """The trainer's arguments: our defaults, `method.args` over them, and what follows from the other keys.

    A stage saves and evaluates four times on its way unless `method.args` says otherwise.
    """
    micro, accumulation = split_batch(stage)
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
        "gradient_accumulation_steps": accumulation,
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
        return cls(**(defaults | settings | placed | computed))
    except (ValueError, TypeError) as error:
        name, reason = f"{cls.__module__.split('.')[0]}.{cls.__name__}", str(error).splitlines()[0]
        raise ConfigError(f"method.args is refused by {name}: {reason}") from error


def method_arguments(stage: Stage) -> dict[str, Any]:
    """`method.args`, with the types of the trainer's config class."""
    for key in sorted(COMPUTED.keys() & stage.method.args.keys()):
        raise ConfigError(f"method.args.{key} is not set by hand; it follows from {COMPUTED[key]}")
    return checked(config_class(stage.method.name), dict(stage.method.args), "method.args")


def check_arguments(stage: Stage) -> None:
    """Raise a ConfigError if a key of `method.args`, `adapter.args` or `quantization.args` is unknown or of the wrong type."""
    method_arguments(stage)
    quantization_config(stage)
    if stage.adapter.name == "lora":
        lora_config(stage, "CAUSAL_LM")
