"""What can be refused before anything heavy is imported: settings that contradict each other, the machine or the run folders."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from rlhf.config import REPO, Stage, options, template_file
from rlhf.errors import ConfigError, nearest
from rlhf.files import FINAL
from rlhf.methods import METHODS, REPORTED
from rlhf.monitor import rules
from rlhf.preflight.memory import argument
from rlhf.rewards.functions import PREFIX, unknown_rule

ALLOWED = {
    "method.name": tuple(METHODS),
    "method.learn": ("replies", "all"),
    "adapter.name": ("lora", "none"),
    "quantization.name": ("nf4", "int8", "none"),
    "dataset.format": ("chat", "plain", "transcript", "tree"),
    "dataset.long_rows": ("drop", "truncate", "error"),
    "dataset.bad_rows": ("error", "drop"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.precision": ("fp32", "bf16"),
    "logging.report_to": ("none", "tensorboard", "wandb", "trackio"),
    "model.attention": ("sdpa", "eager", "flash_attention_2"),
}

# keys of `method` that some methods read, and what they are for the others
OPTIONS = {"learn": "replies", "kwise": False, "reward_model": None, "reward_label": None}
POSITIVE = ("batch_size", "hardware.micro_batch_size", "hardware.devices", "dataset.max_length", "dataset.max_prompt_length",
            "logging.steps", "evaluation.max_new_tokens", "evaluation.batch_size")  # fmt: skip


def check_settings(stage: Stage, planned: Sequence[str] = ()) -> None:
    """Raise a ConfigError that lists every contradiction found; `planned` stages will have run before this one."""
    problems = [*_values(stage), *_weights(stage), *_data(stage), *_machine(stage), *_files(stage, planned)]
    if stage.method.name in METHODS:
        problems += [*_method(stage), *expectation_problems(stage)]
    problems += rules.problems(stage.monitor)
    if problems:
        raise ConfigError("\n".join(problems))


def _get(stage: Stage, key: str) -> object:
    value: object = stage
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _values(stage: Stage) -> list[str]:
    problems = [
        f"{key}={_get(stage, key)} is not one of {', '.join(allowed)}{nearest(_get(stage, key), allowed)}"
        for key, allowed in ALLOWED.items()
        if _get(stage, key) not in allowed
    ]
    problems += [f"{key}={_get(stage, key)} must be at least 1" for key in POSITIVE if int(str(_get(stage, key))) < 1]
    for key in ("run.recipe", "run.stage"):
        value = str(_get(stage, key))
        if not value or ".." in value or value.startswith(("/", "~")) or "\0" in value:
            problems.append(f"{key}={value!r} must be a plain folder name inside run.root")
    return problems


def _weights(stage: Stage) -> list[str]:
    problems, model = [], stage.model
    if stage.quantization.name != "none" and stage.adapter.name == "none":
        problems.append(
            f"adapter=none trains all weights, which quantization={stage.quantization.name} freezes\n"
            "  fix: adapter=lora, or quantization=none"
        )
    if (model.path is None) == (model.init is None):
        problems.append(
            "model.path and model.init: exactly one of them must be set (weights to load, or random ones to make)"
        )
    if model.init is not None and stage.adapter.name != "none":
        problems.append(
            "model.init makes random weights, which an adapter can't train\n  fix: adapter=none quantization=none"
        )
    return problems


def _data(stage: Stage) -> list[str]:
    problems, dataset = [], stage.dataset
    if dataset.format == "transcript" and set(dataset.markers or {}) != {"user", "assistant"}:
        problems.append(
            'dataset.format=transcript needs dataset.markers, e.g. {user: "### Human: ", assistant: "### Assistant: "}'
        )
    cut = dataset.prompt_tokens
    if cut is not None and not (len(cut) == 2 and 1 <= cut[0] <= cut[1]):
        problems.append(f"dataset.prompt_tokens={cut} must be two numbers, fewest and most tokens, e.g. [2, 8]")
    return problems


def _machine(stage: Stage) -> list[str]:
    """Packages that are not installed, and what a CPU can't do."""
    problems, report_to = [], stage.logging.report_to
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        problems.append(f"logging={report_to}: the package is missing\n  fix: pip install {report_to}")
    if stage.hardware.device == "cpu" and stage.quantization.name == "int8":
        problems.append(
            "quantization=int8 needs a GPU\n  fix: quantization=nf4, or hardware=gpu_24gb on a machine with one"
        )
    if stage.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        problems.append(
            "model.attention=flash_attention_2: the package flash_attn is missing\n  fix: model.attention=sdpa"
        )
    return problems


def _method(stage: Stage) -> list[str]:
    """What the row of a method says about its settings."""
    problems, method, dataset = [], stage.method, stage.dataset
    row = METHODS[method.name]
    for option, neutral in OPTIONS.items():
        value = getattr(method, option)
        if value != neutral and option not in row.options:
            readers = ", ".join(name for name, other in METHODS.items() if option in other.options)
            problems.append(
                f"method.{option}={_yaml(value)} is about method={readers}, not {method.name}\n"
                f"  fix: method.{option}={_yaml(neutral)}"
            )
    if dataset.long_rows == "truncate" and row.rows != "demonstrations":
        problems.append("dataset.long_rows=truncate would cut prompts or pairs\n  fix: dataset.long_rows=drop")
    if method.args.get("packing_strategy") == "wrapped":
        # trl/data_utils.py:839 reads `column.values`, which ignores where an Arrow slice begins
        problems.append(
            "method.args.packing_strategy=wrapped trains on the first thousand rows again and again (TRL 1.12)\n"
            "  fix: method.args.packing_strategy=bfd_split"
        )
    if row.smoothed and method.args.get("label_smoothing"):
        losses = argument(stage, "loss_type")
        losses = losses if isinstance(losses, list) else [losses]
        if not set(losses) & set(row.smoothed):
            problems.append(
                f"method.args.label_smoothing={method.args['label_smoothing']} is ignored by loss_type="
                f"{','.join(map(str, losses))} (TRL 1.12)\n  fix: method.args.loss_type=[{row.smoothed[-1]}], or another of "
                f"{', '.join(row.smoothed)}; or label_smoothing=0"
            )
    if "reward_model" in row.options:
        problems += _rewards(stage)
    if row.reply_length:
        room = int(argument(stage, row.reply_length)) + dataset.max_prompt_length
        if room > dataset.max_length:
            problems.append(
                f"method.args.{row.reply_length} + dataset.max_prompt_length = {room} is more than dataset.max_length="
                f"{dataset.max_length}\n  fix: dataset.max_length={room}"
            )
    return problems


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rewards(stage: Stage) -> list[str]:
    """What can be said about `method.reward_model` without reading a file."""
    given = stage.method.reward_models
    if not given or not all(isinstance(value, str) and value for value in given):
        return [
            f"method.reward_model={stage.method.reward_model}: {stage.method.name} needs somebody who scores replies\n"
            "  fix: method.reward_model=<folder or hub id>, function:<name>, or a list of those"
        ]
    return [str(wrong) for value in given if (wrong := unknown_rule(value, "method.reward_model"))]


def _files(stage: Stage, planned: Sequence[str]) -> list[str]:
    """Predecessors that have not run, and templates and data files that are not there."""
    problems = []
    named = [(key, _get(stage, key)) for key in ("model.path", "method.start_from")]
    named += [("method.reward_model", value) for value in stage.method.reward_models]
    for key, value in named:
        if isinstance(value, str) and not value.startswith(PREFIX):
            problems += _missing(stage, key, value, planned)
    template = template_file(stage.model.chat_template)
    if template is not None and not template.is_file():
        known = [path.stem for path in (REPO / "conf/chat_template").glob("*.jinja")]
        problems.append(
            f"model.chat_template={stage.model.chat_template}: there is no file {template}"
            f"{nearest(stage.model.chat_template, known)}"
        )
    return problems


def _missing(stage: Stage, key: str, value: str, planned: Sequence[str]) -> list[str]:
    path = Path(value)
    root = Path(stage.run.root) / stage.run.recipe
    if path.parent.parent == root and path.name == FINAL:
        name = path.parent.name
        if path.is_dir() or name in planned:
            return []
        known = (
            f"recipe={stage.run.recipe}/{name}"
            if f"{stage.run.recipe}/{name}" in options("recipes")
            else f"run.stage={name}"
        )
        return [
            f"{key}={value}: stage `{name}` of `{stage.run.recipe}` has not finished\n  fix: python src/train.py {known}"
        ]
    if value.startswith((".", "/", "~")) and not path.expanduser().exists():
        return [f"{key}={value}: no such folder"]
    return []


def check_machine(stage: Stage) -> None:
    """What only torch can tell: whether the GPUs that the configuration asks for are here."""
    import torch

    if stage.hardware.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("hardware.device=cuda, but this machine has no GPU that torch can use\n  fix: hardware=cpu")
    if stage.hardware.device == "cuda":
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world != stage.hardware.devices:
            raise ConfigError(
                f"hardware.devices={stage.hardware.devices}, but {world} process(es) were started\n"
                f"  fix: accelerate launch --num_processes {stage.hardware.devices} src/train.py ..., or hardware.devices={world}"
            )


def expectation_problems(stage: Stage) -> list[str]:
    """What is wrong with a stage's `expect`, before anything runs."""
    found = []
    for metric, expected in stage.expect.items():
        key, known = f"expect.{metric}", METHODS[stage.method.name].metrics | REPORTED
        if expected.needs is not None:
            if expected.low is not None or expected.high is not None:
                found.append(
                    f"{key}.needs={expected.needs!r}, so nothing here is held against {key}.low and high; leave them out"
                )
            continue
        if metric not in known:
            found.append(
                f"{key} is not a metric of method={stage.method.name}{nearest(metric, known)}\n"
                f"  fix: a metric that the stage logs, or {key}.needs=<what measures it>"
            )
        if expected.low is None or expected.high is None or not expected.low <= expected.published <= expected.high:
            found.append(
                f"{key}: the band [{expected.low}, {expected.high}] must hold the published {expected.published}"
            )
        if expected.band not in ("ours", "source"):
            found.append(f"{key}.band={expected.band} is not one of ours, source: say whose band it is")
    return found
