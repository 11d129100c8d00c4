"""What can be refused before anything heavy is imported: settings that contradict each other, the machine or the run folders."""

import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf.config import REPO, Stage, options, split_batch, template_file
from rlhf.data import sources
from rlhf.data.folders import beside
from rlhf.errors import ConfigError, Refusal, nearest
from rlhf.files import FINAL
from rlhf.methods import METHODS, REPORTED
from rlhf.monitor import rules
from rlhf.parallel import ranks
from rlhf.preflight.memory import argument, fewest
from rlhf.rewards.functions import PREFIX, unknown_rule
from rlhf.shell import element, setting

ALLOWED = {
    "method.name": tuple(METHODS),
    "method.learn": ("replies", "all"),
    "adapter.name": ("lora", "none"),
    "quantization.name": ("nf4", "int8", "none"),
    "dataset.format": sources.FORMATS,
    "dataset.long_rows": ("drop", "truncate", "error"),
    "dataset.bad_rows": ("error", "drop"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.sharding": ("none", "fsdp2"),
    "hardware.precision": ("fp32", "bf16"),
    "logging.report_to": ("none", "tensorboard", "wandb", "trackio"),
    "model.attention": ("sdpa", "eager", "flash_attention_2"),
}

# keys of `method` that some methods read, and what they are for the others
OPTIONS = {"learn": "replies", "kwise": False, "reward_model": None, "reward_label": None, "reference": None}
NAME_MAX = 255  # bytes of a file's name on ext4, XFS, APFS (limits.h)
PATHS_GIVEN = ("model.path", "dataset.path", "method.start_from", "method.reference", "run.root")
POSITIVE = ("batch_size", "hardware.micro_batch_size", "hardware.devices", "dataset.max_length", "dataset.max_prompt_length",
            "logging.steps", "evaluation.max_new_tokens", "evaluation.batch_size")  # fmt: skip
AT_LEAST_1, AT_LEAST_0, ABOVE_0 = (1, math.inf, ""), (0, math.inf, ""), (0, math.inf, "low")
UNIT, BELOW_1, ANY = (
    (0, 1, ""),
    (0, 1, "high"),
    (-math.inf, math.inf, ""),
)  # lowest, highest, which of them is no value itself
RANGES = {
    "seed": (0, 2**32 - 1, ""),  # numpy's
    **dict.fromkeys(POSITIVE, AT_LEAST_1),
    "evaluation.prompts": AT_LEAST_0,
    "hardware.memory_gb": ABOVE_0,
    **dict.fromkeys(
        ("debug.max_steps", "debug.rows", "debug.reply_tokens", "dataset.rows", "monitor.window"), AT_LEAST_1
    ),
}
# of `method.args` and `adapter.args`; those that are not here are AT_LEAST_0, and all are finite
ARGUMENTS = {
    **dict.fromkeys(("r", "rank_pattern", "total_episodes", "save_total_limit", "ref_model_sync_steps"), AT_LEAST_1),
    **dict.fromkeys(
        ("num_train_epochs", "save_steps", "eval_steps", "logging_steps", "lora_alpha", "alpha_pattern"), ABOVE_0
    ),
    **dict.fromkeys(("response_length", "num_ppo_epochs", "num_mini_batches", "temperature", "cliprange"), ABOVE_0),
    **dict.fromkeys(("cliprange_value", "reward_scale", "kl_target", "kl_horizon", "logprob_chunk_size"), ABOVE_0),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ABOVE_0),
    **dict.fromkeys(("gamma", "lam", "label_smoothing", "ld_alpha", "ref_model_mixup_alpha"), UNIT),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), BELOW_1),
    **dict.fromkeys(("missing_eos_penalty", "f_alpha_divergence_coef", "loss_weights", "local_rank"), ANY),
    "eval_prompts": ABOVE_0,
    "max_steps": (-1, math.inf, ""),
}
SHARDED_OPTIM = ("adamw_torch_fused", "adamw_torch", "sgd")
SEVERAL = ("rank_pattern", "alpha_pattern", "loss_weights")  # of those: mappings or lists of numbers


def check_settings(stage: Stage, planned: Sequence[str] = ()) -> None:
    """Raise a ConfigError that lists every contradiction found; `planned` stages will have run before this one."""
    if unnamable := [*_names(stage)]:  # no place of that name can be looked up
        raise ConfigError("\n".join(unnamable))
    numbers = [*_numbers(stage)]
    problems = [
        *_values(stage),
        *numbers,
        *_weights(stage),
        *_data(stage),
        *_machine(stage),
        *_files(stage, planned),
    ]
    if stage.method.name in METHODS and not numbers:  # it reckons with them
        problems += [*_method(stage), *expectation_problems(stage)]
    problems += rules.problems(stage.monitor)
    if problems:
        raise ConfigError("\n".join(problems))


def _get(stage: Stage, key: str) -> object:
    value: object = stage
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _names(stage: Stage) -> Iterator[str]:
    """Folders and files by names that no file system takes, or that lie elsewhere than where a run may be."""
    given = [(key, _get(stage, key)) for key in ("run.recipe", "run.stage", *PATHS_GIVEN)]
    for key, value in [*given, *(("method.reward_model", value) for value in stage.method.reward_models)]:
        longest = max(len(os.fsencode(part)) for part in str(value).split("/"))
        if longest > NAME_MAX:
            what = f"has {longest} bytes in the name of a folder or file, and file systems take {NAME_MAX}"
            yield str(Refusal(key, f"{str(value)[:20]}…", what))
    for key in ("run.recipe", "run.stage"):
        value = str(_get(stage, key))
        if {"", ".", ".."} & set(value.split("/")) or value.startswith("~") or "\0" in value:
            fix = f"{key}={'mine' if key == 'run.recipe' else 'sft-2'}"
            yield str(Refusal(key, repr(value), "must be a plain folder name inside run.root", fix=fix))


def _values(stage: Stage) -> Iterator[str]:
    for key, allowed in ALLOWED.items():
        if (value := _get(stage, key)) not in allowed:
            yield f"{key}={value} is not one of {', '.join(allowed)}{nearest(value, allowed)}"
    for key in PATHS_GIVEN:
        if _get(stage, key) == "":
            yield f"{key}= is empty; a variable of the shell may have no value"


def _numbers(stage: Stage) -> Iterator[str]:
    """Numbers that no trainer takes: the machine would find out when the weights are loaded, or never."""
    for key, limits in RANGES.items():
        yield from _outside(key, _get(stage, key), limits)
    for group in ("method", "adapter"):
        for name, value in getattr(stage, group).args.items():
            key = f"{group}.args.{name}"
            if name in ARGUMENTS and name not in SEVERAL and isinstance(value, str | bool | dict | list):
                yield f"{key}={element(value)} is not a number"
            elif name in ARGUMENTS or not isinstance(value, dict | list):  # what mappings of others mean is not known
                yield from _outside(key, value, ARGUMENTS.get(name, AT_LEAST_0))


def _outside(key: str, value: object, limits: tuple[float, float, str]) -> Iterator[str]:
    low, high, open_end = limits
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _outside(f"{key}.{name}", inner, limits)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        inside = low < value if open_end == "low" else low <= value
        inside &= value < high if open_end == "high" else value <= high
        if not inside or not math.isfinite(value):
            least = [] if low == -math.inf else [f"above {low}" if open_end == "low" else f"at least {low}"]
            most = [] if high == math.inf else [f"below {high}" if open_end == "high" else f"at most {high}"]
            yield f"{key}={value}: must be {' and '.join([*least, *most]) or 'finite'}"


def _weights(stage: Stage) -> Iterator[str]:
    model = stage.model
    if stage.quantization.name != "none" and stage.adapter.name == "none":
        what = f"adapter=none trains all weights, which quantization={stage.quantization.name} freezes"
        yield f"{what}\n  fix: adapter=lora, or quantization=none"
    if (model.path is None) == (model.init is None):
        yield "model.path and model.init: exactly one of them must be set (weights to load, or random ones to make)"
    if model.init is not None and stage.adapter.name != "none":
        yield "model.init makes random weights, which an adapter can't train\n  fix: adapter=none quantization=none"


def _data(stage: Stage) -> Iterator[str]:
    dataset = stage.dataset
    if dataset.format == "transcript" and set(dataset.markers or {}) != {"user", "assistant"}:
        sample = setting("dataset.markers", {"user": "### Human: ", "assistant": "### Assistant: "})
        yield f"dataset.format=transcript needs dataset.markers for user and assistant\n  e.g. {sample}"
    try:
        sources.parts(dataset, "train")
    except ConfigError as error:
        yield str(error)
    cut = dataset.prompt_tokens
    if cut is not None and not (len(cut) == 2 and 1 <= cut[0] <= cut[1]):
        yield f"dataset.prompt_tokens={cut} must be two numbers, fewest and most tokens, e.g. {setting('dataset.prompt_tokens', [2, 8])}"


def _machine(stage: Stage) -> Iterator[str]:
    """Packages that are not installed, and what a CPU can't do."""
    report_to = stage.logging.report_to
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        yield f"logging={report_to}: the package is missing\n  fix: pip install {report_to}"
    if stage.hardware.device == "cpu" and stage.quantization.name == "int8":
        yield "quantization=int8 needs a GPU\n  fix: quantization=nf4, or hardware=gpu_24gb on a machine with one"
    if stage.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        yield "model.attention=flash_attention_2: the package flash_attn is missing\n  fix: model.attention=sdpa"
    if stage.hardware.sharding == "fsdp2":
        yield from _sharding(stage)


def _sharding(stage: Stage) -> Iterator[str]:
    """What can't be cut over the devices, or need not be."""
    off = "hardware.sharding=none"
    if stage.method.name in METHODS and METHODS[stage.method.name].own_loop:
        why = f"method={stage.method.name} asks its models in turns of their own; with adapters they are one base"
        yield str(Refusal("hardware.sharding", "fsdp2", why, fix=off))
    elif stage.adapter.name != "none" or stage.quantization.name != "none":
        why = "cuts weights that are trained, and an adapter on a frozen base, in 4 bit or not, trains few"
        yield str(Refusal("hardware.sharding", "fsdp2", why, fix=f"{off}, or adapter=none quantization=none"))
    if stage.hardware.devices == 1:
        yield str(
            Refusal(
                "hardware.sharding", "fsdp2", "has one device to cut weights over", fix=f"{off}, or hardware.devices=2"
            )
        )
    optim = stage.method.args.get("optim", SHARDED_OPTIM[0])
    if optim not in SHARDED_OPTIM:
        why = "is not known to step weights that are cut over devices"
        yield str(Refusal("method.args.optim", optim, why, allowed=SHARDED_OPTIM, fix=off))


def _method(stage: Stage) -> Iterator[str]:
    """What the row of a method says about its settings."""
    method, dataset, row = stage.method, stage.dataset, METHODS[stage.method.name]
    for option, neutral in OPTIONS.items():
        value = getattr(method, option)
        if value != neutral and option not in row.options:
            readers = ", ".join(name for name, other in METHODS.items() if option in other.options)
            what = f"method.{option}={element(value)} is about method={readers}, not {method.name}"
            yield f"{what}\n  fix: {setting(f'method.{option}', neutral)}"
    if dataset.long_rows == "truncate" and row.rows != "demonstrations":
        yield "dataset.long_rows=truncate would cut prompts or pairs\n  fix: dataset.long_rows=drop"
    least = fewest(stage)
    if least > 1 and stage.batch_size and split_batch(stage)[0] < least:
        devices, micro = stage.hardware.devices, stage.hardware.micro_batch_size
        what = f"batch_size={stage.batch_size} and hardware.micro_batch_size={micro} leave a forward pass one row"
        why = f"{method.name} holds a reply against those to other prompts of its forward pass (TRL 1.12)"
        yield f"{what}, and {why}\n  fix: batch_size={max(stage.batch_size, least * devices)} hardware.micro_batch_size={max(micro, least)}"
    if method.args.get("packing_strategy") == "wrapped":
        # trl/data_utils.py:839 reads `column.values`, which ignores where an Arrow slice begins
        what = "method.args.packing_strategy=wrapped trains on the first thousand rows again and again (TRL 1.12)"
        yield f"{what}\n  fix: method.args.packing_strategy=bfd_split"
    for key in row.unread:
        if value := method.args.get(key):
            what = f"method.args.{key}={element(value)} is for TRL's trainers, and the loop of {method.name} has no use for it"
            yield f"{what}\n  fix: leave it out"
    if row.smoothed and method.args.get("label_smoothing"):
        losses = argument(stage, "loss_type")
        losses = losses if isinstance(losses, list) else [losses]
        if not set(losses) & set(row.smoothed):
            smoothing, given = method.args["label_smoothing"], ",".join(map(str, losses))
            fix = f"{setting('method.args.loss_type', [row.smoothed[-1]])}, or another of {', '.join(row.smoothed)}; or method.args.label_smoothing=0"
            yield f"method.args.label_smoothing={smoothing} is ignored by loss_type={given} (TRL 1.12)\n  fix: {fix}"
    if "reward_model" in row.options:
        yield from _rewards(stage)
    if row.reply_length:
        room = int(argument(stage, row.reply_length)) + dataset.max_prompt_length
        if room > dataset.max_length:
            needed = f"method.args.{row.reply_length} + dataset.max_prompt_length = {room}"
            yield f"{needed} is more than dataset.max_length={dataset.max_length}\n  fix: dataset.max_length={room}"


def _rewards(stage: Stage) -> list[str]:
    """What can be said about `method.reward_model` without reading a file."""
    given = stage.method.reward_models
    if not given or not all(isinstance(value, str) and value for value in given):
        return [
            f"method.reward_model={stage.method.reward_model}: {stage.method.name} needs somebody who scores replies\n"
            "  fix: method.reward_model=runs/support/reward/final, or another folder, hub id, rule (function:length), or list of those"
        ]
    return [str(wrong) for value in given if (wrong := unknown_rule(value, "method.reward_model"))]


def _files(stage: Stage, planned: Sequence[str]) -> Iterator[str]:
    """Predecessors that have not run, and templates and data files that are not there."""
    named = [(key, _get(stage, key)) for key in ("model.path", "method.start_from", "method.reference")]
    named += [("method.reward_model", value) for value in stage.method.reward_models]
    for key, value in named:
        if isinstance(value, str) and not value.startswith(PREFIX):
            yield from _missing(stage, key, value, planned)
    given = stage.model.chat_template
    template = template_file(given)
    if template is not None and not template.is_file():
        known = [path.stem for path in (REPO / "conf/chat_template").glob("*.jinja")]
        yield f"model.chat_template={given}: there is no file {template}{nearest(given, known)}"


def _missing(stage: Stage, key: str, value: str, planned: Sequence[str]) -> Iterator[str]:
    path, recipe = Path(value), stage.run.recipe
    if path.parent.parent == Path(stage.run.root) / recipe and path.name == FINAL:
        name = path.parent.name
        if not path.is_dir() and name not in planned:
            yield f"{key}={value}: stage `{name}` of `{recipe}` has not finished\n  fix: {_first(stage, key, name)}"
    elif value.startswith((".", "/", "~")) and not path.expanduser().exists():
        yield f"{key}={value}: no such folder{beside(value)}"


def _first(stage: Stage, key: str, name: str) -> str:
    """What to do about a stage that has to be there before: run it, where a recipe says how, or start from something else."""
    stages = options("recipes")
    root = [setting("run.root", stage.run.root)] if stage.run.root != "runs" else []
    if f"{stage.run.recipe}/{name}" in stages:
        return " ".join(["python src/train.py", f"recipe={stage.run.recipe}/{name}", *root])
    run = f"the same command with method={name} and rows for it, first" if name in METHODS else ""
    if key == "method.start_from":
        return ", or ".join(["method.start_from=null, to start from model.path", *([run] if run else [])])
    if key == "model.path" and (
        made := min((one for one in stages if one.endswith(f"/{name}")), key=len, default=None)
    ):
        path = setting("model.path", f"{stage.run.root}/{made}/{FINAL}")
        return (
            f"{' '.join(['python src/train.py', f'recipe={made}', *root])}, then {path}; or model= with another model"
        )
    return run or f"another {key}"


def check_machine(stage: Stage) -> None:
    """Whether the GPU that the configuration asks for, which only torch can tell, is here."""
    if stage.hardware.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            several = f" for rank {ranks.rank()} of hardware.devices={ranks.size()}" if ranks.size() > 1 else ""
            why = f"but this machine has no GPU that torch can use{several}"
            raise ConfigError(f"hardware.device=cuda, {why}\n  fix: hardware=cpu, or fewer hardware.devices")


def expectation_problems(stage: Stage) -> Iterator[str]:
    """What is wrong with a stage's `expect`, before anything runs."""
    known = METHODS[stage.method.name].metrics | REPORTED if stage.expect else set()
    for metric, expected in stage.expect.items():
        key, low, high = f"expect.{metric}", expected.low, expected.high
        if expected.needs is not None:
            if low is not None or high is not None:
                what = f"so nothing here is held against {key}.low and high; leave them out"
                yield f"{key}.needs={expected.needs!r}, {what}"
            if expected.benchmark is not None:
                yield f"{key}.needs={expected.needs!r}, where {key}.benchmark measures it; leave one of them out"
            continue
        if expected.benchmark is None and metric not in known:
            fix = f"a metric that the stage logs, or in {key}.needs or {key}.benchmark what measures it"
            yield f"{key} is not a metric of method={stage.method.name}{nearest(metric, known)}\n  fix: {fix}"
        if low is None or high is None or not low <= expected.published <= high:
            yield f"{key}: the band [{low}, {high}] must hold the published {expected.published}"
        if expected.band not in ("ours", "source"):
            yield f"{key}.band={expected.band} is not one of ours, source: say whose band it is"
