"""Every way an adapter is made, read, checked, copied, widened and switched."""

import copy
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config import Stage, checked
from rlhf.errors import Refusal, nearest
from rlhf.files import FINAL
from rlhf.models.checks import CONFIG
from rlhf.shell import setting

# The fields of peft.LoraConfig (0.21) that say where an adapter sits and what it computes from its own tensors. Roles that
# share a base, the stages after this one, evaluation and chat carry these; what any other field asks for they would lose.
CARRIED = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "init_lora_weights"),
}
WRITTEN = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
}
# of `init_lora_weights`: where training starts at the base itself, which stays as it is
STARTS = ("true", "gaussian", "orthogonal")
WHY = {
    "bias": "trains biases of the base, and roles that share it have but one",
    "modules_to_save": "trains whole layers of the base beside the adapter",
    "trainable_token_indices": "trains rows of the base's embeddings",
    "layer_replication": "is another base, with layers of this one repeated",
    "target_parameters": "is no adapter of linear layers, and PEFT lets one model carry few of them",
}
SHARED = "is more than an adapter's own matrices, which is what stages and roles on one base hand each other"


def lora_config(stage: Stage, task: str) -> Any:
    """The group `adapter` as a peft.LoraConfig for `task` (CAUSAL_LM or SEQ_CLS).

    Raises a ConfigError, most often a Refusal of the field, for what PEFT or the stages after this one can't do with it.
    """
    from peft import LoraConfig

    settings = checked(LoraConfig, dict(stage.adapter.args), "adapter.args")
    check_settings(settings)
    settings = {name: value for name, value in settings.items() if name not in WRITTEN}
    try:
        return LoraConfig(task_type=task, **settings)
    except (ValueError, TypeError) as error:
        raise Refusal("adapter.args", settings, f"refused by peft.LoraConfig: {error}") from error


def check_settings(settings: dict[str, Any]) -> None:
    """Refuses fields of a LoraConfig that this repository sets itself or can't carry, and values that make no adapter."""
    defaults = lora_defaults()
    for name, value in settings.items():
        key = f"adapter.args.{name}"
        if name not in CARRIED and value and value != defaults[name]:
            why = "is what the stage sets itself" if name in WRITTEN else WHY.get(name, SHARED)
            raise Refusal(key, value, why, fix=f"{key}={'none' if defaults[name] == 'none' else 'null'}")
    init = settings.get("init_lora_weights", True)
    if str(init).lower() not in STARTS:
        why = "does not start at the base as it is, so what is saved would be an adapter of another base"
        fix = "adapter.args.init_lora_weights=true"
        raise Refusal("adapter.args.init_lora_weights", init, why, allowed=STARTS, fix=fix)
    for key, name in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        values = {key: settings.get(key, 8)} | {f"{name}.{k}": v for k, v in (settings.get(name) or {}).items()}
        for where, value in values.items():
            if not isinstance(value, int | float) or value < 1:
                raise Refusal(f"adapter.args.{where}", value, "must be at least 1", fix=f"adapter.args.{where}=16")
    if not 0 <= (dropout := settings.get("lora_dropout", 0.0)) < 1:
        raise Refusal(
            "adapter.args.lora_dropout", dropout, "must be from 0 up to 1", fix="adapter.args.lora_dropout=0.05"
        )


def lora_defaults() -> dict[str, Any]:
    """Every field of the installed peft.LoraConfig with its default."""
    from peft import LoraConfig

    fresh = LoraConfig()
    return {field.name: getattr(fresh, field.name) for field in dataclasses.fields(LoraConfig)}


def with_adapter(stage: Stage, base: Any, start: str | None, task: str) -> Any:
    """A trainable LoRA named `default` on `base`: new, or the function of the adapter folder `start`.

    `start` may be of a lower rank, on fewer layers and scaled by other numbers than `adapter.args` say. What it is and
    they are not, DoRA or a bias, it stays. For SEQ_CLS the scalar head is trained and saved with it. Adapters are fp32:
    updates of a bf16 weight below 1/256 are lost.
    """
    from peft import get_peft_model

    lora, stored = lora_config(stage, task), None
    check_targets(lora, base)
    if start is not None:
        stored = read_adapter_config(Path(start), stage.model.path, "method.start_from")
        _go_on(lora, stored, start)
    if task == "SEQ_CLS":
        lora.modules_to_save = ["score"]
    model = get_peft_model(base, lora)
    if stored is not None:
        fill_adapter(
            model, "default", Path(start or ""), "method.start_from", lambda n: scale(stored, n) / scale(lora, n)
        )
    return model


def _go_on(lora: Any, stored: Any, start: str) -> None:
    """Gives `lora` what the adapter in `start` is; a Refusal where it can't hold it, or would be another function."""
    ranks = [stored.r] if lora.rank_pattern == stored.rank_pattern else [stored.r, *stored.rank_pattern.values()]
    if lora.r < max(ranks):
        fix = f"adapter.args.r={max(ranks)} or more, or train that stage again"
        raise Refusal("adapter.args.r", lora.r, f"method.start_from={start} has rank {max(ranks)}", fix=fix)
    if lora.use_dora and not stored.use_dora:
        why = f"method.start_from={start} has none, and its directions and lengths are not those of DoRA"
        raise Refusal("adapter.args.use_dora", "true", why, fix="adapter.args.use_dora=false")
    for name in ("use_dora", "lora_bias"):
        if getattr(stored, name) and not getattr(lora, name):
            print(f"adapter.args.{name}=true, since method.start_from={start} has it", flush=True)
            setattr(lora, name, True)


def check_targets(lora: Any, base: Any) -> None:
    """Refuses target modules that `base` lacks; PEFT refuses them only where none is left, and otherwise skips them."""
    given, names = lora.target_modules or (), [name for name, _ in base.named_modules()]
    if isinstance(given, str):
        absent = [] if given.lower() == "all-linear" or any(_meant(given, name) for name in names) else [given]
    else:
        absent = sorted(target for target in given if not any(_meant([target], name) for name in names))
    if absent:
        known = {name.rpartition(".")[2] for name, module in base.named_modules() if hasattr(module, "in_features")}
        why = f"{type(base).__name__} has no such layers{nearest(absent[0], known)}"
        raise Refusal("adapter.args.target_modules", ",".join(absent), why, allowed=["all-linear", *sorted(known)])
    if tables := [
        name for name, module in base.named_modules() if isinstance(module, nn.Embedding) and _meant(given, name)
    ]:
        why = (
            "is a table of embeddings: its adapter is none of the reference that TRL 1.12 copies, nor of a reward model"
        )
        raise Refusal("adapter.args.target_modules", tables[0], why, fix="adapter.args.target_modules=all-linear")


def _meant(given: Any, name: str) -> bool:
    """Whether `target_modules` names a module, as PEFT reads it."""
    if isinstance(given, str):
        return given.lower() != "all-linear" and re.fullmatch(given, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in given)


def scale(lora: Any, name: str) -> float:
    """What PEFT multiplies B A of one layer by, for a tensor of it by the name under which PEFT saves that.

    Patterns match the whole name of a layer, or its end after a dot (peft 0.21, `get_pattern_key`).
    """
    from peft.utils.other import get_pattern_key

    layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
    rank = lora.rank_pattern.get(get_pattern_key(lora.rank_pattern.keys(), layer), lora.r)
    alpha = lora.alpha_pattern.get(get_pattern_key(lora.alpha_pattern.keys(), layer), lora.lora_alpha)
    return alpha / (rank**0.5 if lora.use_rslora else rank)


@contextmanager
def trainable_kept_in_fp32(model: Any) -> Iterator[None]:
    """TRL's constructors cast what is trainable on a quantized base to bf16 (trl 1.12, sft_trainer:1148); undo that.

    The rounded copy would differ from its own reference, so DPO would not start at ln 2, and fp32 heads would not be
    fp32.
    """
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name]


WEIGHTS = "adapter_model.safetensors"

# modules_to_save of a sequence classifier: its head, which lives outside PEFT here
HEAD_MODULES = {"score", "classifier"}


def read_adapter_config(folder: Path, base: str | None, key: str) -> Any:
    """The LoRA config in an adapter folder as one for a causal LM, checked against the name of the base it will sit on.

    Raises a Refusal of `key=folder`: no adapter there, not LoRA, another base, or one that changed its base or holds
    full layers.
    """
    from peft import LoraConfig

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            whole = (folder / "config.json").is_file() and key == "method.start_from"
            fix = (
                f"model.path={folder} method.start_from=null"
                if whole
                else "the folder in which a stage saved its adapter"
            )
            raise Refusal(key, folder, f"no {name} there" + (", but a whole model" if whole else ""), fix=fix)
    try:
        stored = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise Refusal(key, folder, f"{CONFIG} is not JSON ({error})", fix="train that stage again") from error
    if stored.get("peft_type") != "LORA":
        why = f"peft_type is {stored.get('peft_type')}, and only LORA adapters can share a base"
        raise Refusal(key, folder, why, fix=_otherwise(folder, key))
    trained_on = stored.get("base_model_name_or_path")
    if trained_on and base and not same_base(trained_on, base):
        why = f"trained on the base {trained_on}, and this run uses {base}"
        raise Refusal(key, folder, why, fix=f"{setting('model.path', trained_on)}, or train it on this base")
    _check_stored(stored, folder, key)
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.modules_to_save, config.task_type, config.bias = None, "CAUSAL_LM", "none"
    return copy_config(config)


def _otherwise(folder: Path, key: str) -> str:
    """What to do with an adapter that can't share a base: merged into one, it can be what a stage starts from."""
    merged = f"{setting('model.path', folder)} method.start_from=null"
    return (
        merged
        if key == "method.start_from"
        else "train that stage again with adapter=lora, and no settings but its own"
    )


def _check_stored(stored: dict[str, Any], folder: Path, key: str) -> None:
    """Refuses an adapter that is more than its own matrices: by the fields of its config, known to PEFT or not."""
    fix = _otherwise(folder, key)
    init = str(stored.get("init_lora_weights", True))
    if init.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga", "mica")):
        why = f"init_lora_weights={init} changed the base it was trained on, so it cannot share one"
        raise Refusal(key, folder, why, fix=fix)
    defaults, heads = lora_defaults(), HEAD_MODULES if stored.get("task_type") == "SEQ_CLS" else set[str]()
    for name, value in stored.items():
        if name == "modules_to_save":
            value = sorted(set(value or ()) - heads)
            why = f"modules_to_save has {value}, which are full layers"
        elif name in defaults:
            why = f"{name}={value} {WHY.get(name, SHARED)}"
        else:  # of another version of PEFT: a number or null asks for nothing by itself
            why = f"{name}={value} is unknown to this version of PEFT, and it was saved by {stored.get('peft_version')}"
            value = value if isinstance(value, bool | str | list | dict) else None
        if name not in CARRIED | WRITTEN and value and value != defaults.get(name) and name not in _HARMLESS:
            raise Refusal(key, folder, why, fix=fix)


# how an adapter was made or is computed, and not what
_HARMLESS = {
    "eva_config",
    "velora_config",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
}


def same_base(one: str, other: str) -> bool:
    """Whether two names mean one base: the same id or folder, or the same run of a recipe whose runs were moved."""
    if one == other or os.path.realpath(one) == os.path.realpath(other):
        return True
    ends = [Path(name).parts[-3:] for name in (one, other)]
    return ends[0] == ends[1] and ends[0][-1] == FINAL


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The tensors of an adapter folder by name, and its scalar head's `[labels, H]` weight in fp32, if it has one."""
    from safetensors.torch import load_file

    stored = load_file(str(folder / WEIGHTS)) if (folder / WEIGHTS).is_file() else {}
    heads = [stored.pop(name) for name in list(stored) if _is_head(name)]
    return stored, heads[0].float() if heads else None


def adapter_weights(peft: Any, adapter: str) -> dict[str, Tensor]:
    """The parameters of an adapter, without a scalar head's, by the names under which PEFT saves them."""
    from peft import get_peft_model_state_dict

    named = dict(peft.named_parameters())
    own = get_peft_model_state_dict(peft, state_dict=named, adapter_name=adapter, save_embedding_layers=False)
    return {name: parameter for name, parameter in own.items() if not _is_head(name)}


def _is_head(name: str) -> bool:
    return name.endswith("score.weight") or ".score.modules_to_save." in name


Widen = Callable[[str], float]


def fill_adapter(peft: Any, adapter: str, folder: Path, key: str, widen: Widen | None = None) -> Tensor | None:
    """Fills an adapter from a folder; returns the `[labels, H]` weight of the folder's scalar head, if it has one."""
    stored, head = read_weights(folder)
    _drop_base(stored, peft, folder, key)
    fill(adapter_weights(peft, adapter), stored, folder, key, widen)
    return head


def _drop_base(stored: dict[str, Tensor], peft: Any, folder: Path, key: str) -> None:
    """Leaves out embeddings of the base, which PEFT saves with an adapter on the last layer, or if their number changed.

    Others than this base's are a Refusal: they belong to what was trained.
    """
    weights = {name.replace(".base_layer.", "."): parameter for name, parameter in peft.named_parameters()}
    for name in [name for name in stored if name.replace(".base_layer.", ".") in weights]:
        given, own = stored.pop(name), weights[name.replace(".base_layer.", ".")]
        if given.shape != own.shape or not torch.equal(given.to(own), own):
            why = f"holds {name}, which is not the base's: a whole layer, and roles that share a base have but one"
            raise Refusal(key, folder, why, fix=_otherwise(folder, key))


@torch.no_grad()
def fill(own: dict[str, Tensor], stored: dict[str, Tensor], folder: Path, key: str, widen: Widen | None = None) -> None:
    """Copies `stored`, read from `folder`, into the tensors of the same names in `own`: every one of them or none.

    With `widen`, the ratio of the two scalings by the name of a tensor, an adapter may have a higher rank than the stored
    one and sit on more layers: B is zero in what is new and rescaled in what is old, so that the model computes what it
    did before. Raises a Refusal of `key=folder`.
    """
    missing = sorted(own.keys() - stored.keys()) if widen is None else []
    extra = sorted(stored.keys() - own.keys())
    if missing or extra:
        why = f"{len(missing)} tensors are missing ({missing[:1]}), {len(extra)} have no place ({extra[:1]})"
        fix = "the adapter.args.target_modules and model.path that it was trained with, or train it again"
        raise Refusal(key, folder, f"{why}; it was trained with other target modules or on another base", fix=fix)
    for name, given in stored.items():
        if not _fits(name, given, own[name], widen is not None):
            why = f"{name} has shape {tuple(given.shape)}, this base needs {tuple(own[name].shape)}"
            fix = "the model.path and adapter.args that it was trained with, or train it again"
            raise Refusal(key, folder, f"{why}; it was trained on another base", fix=fix)
    for name, given in stored.items():
        if widen is not None and ".lora_B." in name:
            own[name].zero_()
            given = given * widen(name)
        own[name][tuple(map(slice, given.shape))].copy_(given)


def _fits(name: str, given: Tensor, own: Tensor, widen: bool) -> bool:
    """A is `[rank, in]`, B is `[out, rank]`: only the rank may grow."""
    if not widen or not name.endswith((".lora_A.weight", ".lora_B.weight")):
        return given.shape == own.shape
    rank = 0 if ".lora_A." in name else 1
    kept = given.ndim == own.ndim == 2 and given.shape[1 - rank] == own.shape[1 - rank]
    return kept and given.shape[rank] <= own.shape[rank]


def switch_adapter(peft: Any, adapter: str | None) -> None:
    """Activates one adapter and leaves every `requires_grad` as it was.

    PEFT's `set_adapter` makes what it activates trainable and freezes the rest (peft#2759): the reference would start
    to learn, and the policy's gradients would vanish.
    """
    flags = [(p, p.requires_grad) for p in peft.parameters()]
    peft.set_adapter(adapter)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def belongs(name: str, adapter: str | None) -> bool:
    """Whether a parameter of a PeftModel is one of an adapter: PEFT puts its name last, or before `weight` or `bias`."""
    return adapter in name.split(".")[-2:]


def copy_adapter(peft: Any, source: str | None, target: str) -> None:
    """Adds a frozen copy of the adapter `source` under the name `target`; the active adapter stays the same."""
    flags = [(p, p.requires_grad) for p in peft.parameters()]
    peft.add_adapter(target, copy_config(peft.peft_config[source]))
    weights = dict(peft.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            if belongs(name, target):
                before, _, after = name.rpartition(f".{target}")
                parameter.copy_(weights[f"{before}.{source}{after}"])
                parameter.requires_grad_(False)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def copy_config(config: Any) -> Any:
    """The same LoRA with plain initialization: the weights are loaded over it, the base must not be touched."""
    config = copy.deepcopy(config)
    config.inference_mode, config.lora_dropout, config.init_lora_weights = False, 0.0, True
    return config
