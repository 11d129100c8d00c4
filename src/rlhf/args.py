"""From YAML to the config classes of TRL, PEFT and bitsandbytes: every key known and of the right type, or refused with a hint.

TRL's dataclasses can't be Hydra structured configs (unions of containers), and its own parser drops unknown keys silently, so
the keys are checked here against the installed version, before any weight is loaded.
"""

import dataclasses
import inspect
import types
import typing
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf.config import Stage
from rlhf.errors import ConfigError, nearest

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


def split_batch(stage: Stage) -> tuple[int, int]:
    """Rows in one forward pass of one device, and how many of those passes make an optimizer step."""
    devices, most = stage.hardware.devices, stage.hardware.micro_batch_size
    micro = min(most, max(1, stage.batch_size // devices))
    step = micro * devices
    if stage.batch_size < 1 or stage.batch_size % step:
        below = stage.batch_size // step * step
        allowed = [str(size) for size in (below, below + step) if size > 0]
        raise ConfigError(
            f"batch_size={stage.batch_size} does not divide by hardware.devices={devices} x "
            f"hardware.micro_batch_size={micro}\n  fix: batch_size={' or batch_size='.join(allowed)}"
        )
    return micro, stage.batch_size // step


def config_class(method: str) -> type:
    """The dataclass that holds a method's arguments."""
    if method == "ppo":
        from rlhf.ppo.trainer import PPOConfig

        return PPOConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.sft_config import SFTConfig

    return {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}[method]


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
        if stage.method.name == "ppo":
            placed["total_episodes"] = stage.debug.max_steps * stage.batch_size
    placed = {key: value for key, value in placed.items() if key in known}
    try:
        return cls(**(defaults | settings | placed | computed))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"method.args is refused by {cls.__module__.split('.')[0]}.{cls.__name__}: {reason}"
        ) from error


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


def checked(cls: type, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """`settings` with the types of the fields of dataclass `cls`; all problems are reported at once."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    problems = [
        f"{where}.{key} is not a field of {cls.__module__.split('.')[0]}.{cls.__name__}{nearest(key, known)}"
        for key in settings
        if key not in known
    ]
    values = {}
    for key, value in settings.items():
        if key not in known:
            continue
        allowed = typing.get_args(hints[key]) if typing.get_origin(hints[key]) is typing.Literal else (value,)
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            problems.append(f"{where}.{key}={value!r} is not one of {choices}{nearest(value, map(str, allowed))}")
        kind = _scalar(hints[key])
        if kind is None or value is None:
            values[key] = value
            continue
        schema = dataclasses.make_dataclass(cls.__name__, [("value", kind, dataclasses.field(default=MISSING))])
        try:
            values[key] = OmegaConf.merge(OmegaConf.structured(schema), {"value": value}).value
        except OmegaConfBaseException:
            problems.append(f"{where}.{key}={value!r} is not {_article(kind)}")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def _scalar(hint: Any) -> type | None:
    """The one scalar type of a hint such as `float | None`; None where there are several, or a container."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [kind for kind in members if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (int, float, bool, str) else None


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def lora_config(stage: Stage, task: str) -> Any:
    """The group `adapter` as a peft.LoraConfig for `task` (CAUSAL_LM or SEQ_CLS)."""
    from peft import LoraConfig

    settings = checked(LoraConfig, dict(stage.adapter.args), "adapter.args")
    try:
        return LoraConfig(task_type=task, **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"adapter.args is refused by peft.LoraConfig: {error}") from error


def quantization_config(stage: Stage) -> Any:
    """The group `quantization` as a BitsAndBytesConfig, or None; its class swallows typos, so the signature is the judge."""
    if stage.quantization.name == "none":
        return None
    from transformers import BitsAndBytesConfig

    known = set(inspect.signature(BitsAndBytesConfig.__init__).parameters) - {"self", "kwargs"}
    for key in stage.quantization.args:
        if key not in known:
            raise ConfigError(f"quantization.args.{key} is not a field of BitsAndBytesConfig{nearest(key, known)}")
    compute = "bfloat16" if stage.hardware.precision == "bf16" else "float32"
    # the scalar head must stay out of it: quantized, it could not be trained or loaded back
    fixed = {"llm_int8_skip_modules": ["lm_head", "score", "classifier"], "bnb_4bit_compute_dtype": compute}
    return BitsAndBytesConfig(**(fixed | dict(stage.quantization.args)))
