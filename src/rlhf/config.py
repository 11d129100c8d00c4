"""What may be written in YAML and on the command line: the typed schema, its resolvers, and how a stage is composed.

Imports nothing heavy. The values and a sentence on each key stand in `conf/train.yaml`; here are only the types, so that a
typo or a wrong type is refused while the config is composed. `method.args`, `adapter.args` and `quantization.args` stay open:
`rlhf.methods.arguments` judges them against the installed TRL, PEFT and bitsandbytes.
"""

import dataclasses
import json
import re
import shlex
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf import files
from rlhf.errors import ConfigError, DataError, Refusal, nearest
from rlhf.files import FINAL
from rlhf.shell import holds_text, home, readable, setting, several

GB = 2**30  # bytes in a GB, of hardware.memory_gb as of what is printed; an MB has 2**20
MIXTURE = "mixture:"  # the path of a dataset that is only its parts
REPO = Path(__file__).resolve().parents[2]
STAGE_REFERENCE = re.compile(r"\$\{stage:\s*([\w-]+)\s*\}")


@dataclass
class Run:
    root: str = MISSING
    recipe: str = MISSING
    stage: str = MISSING
    overwrite: bool = MISSING


@dataclass
class Model:
    path: str | None = MISSING
    revision: str | None = MISSING
    licence: str | None = MISSING
    chat_template: str | None = MISSING
    eos_token: str | None = MISSING
    pad_token: str | None = MISSING
    attention: str = MISSING
    trust_remote_code: bool = MISSING
    shape: dict[str, Any] = field(default_factory=dict)  # runs from before this key stay readable
    init: dict[str, Any] | None = MISSING


@dataclass
class Splits:
    train: str | None = MISSING
    eval: str | None = MISSING
    test: str | None = MISSING


@dataclass
class Dataset:
    path: str = MISSING
    subset: str | None = MISSING
    revision: str | None = MISSING
    licence: str | None = MISSING
    rows: int | None = None  # as for Model.shape
    splits: Splits = MISSING
    columns: dict[str, str | None] = MISSING
    format: str = MISSING
    prompt_tokens: list[int] | None = MISSING
    markers: dict[str, str] | None = MISSING
    system: str | None = MISSING
    options: dict[str, Any] = MISSING
    annotator: str | None = MISSING
    max_length: int = MISSING
    max_prompt_length: int = MISSING
    long_rows: str = MISSING
    bad_rows: str = MISSING
    # runs from before these keys stay readable
    streaming: bool = False
    mixture: Any = None  # None or a list of mappings, which OmegaConf has no type for


@dataclass
class Method:
    name: str = MISSING
    start_from: str | None = MISSING
    reference: str | None = None  # as for Model.shape
    reward_model: Any = MISSING  # None, a text, or a list of texts, which OmegaConf has no type for
    reward_label: str | None = MISSING
    learn: str = MISSING
    kwise: bool = MISSING
    args: dict[str, Any] = MISSING

    @property
    def reward_models(self) -> list[str]:
        """`reward_model` as a list: empty, one, or the members of an ensemble."""
        given = self.reward_model
        return [] if given is None else list(given) if isinstance(given, list) else [given]


@dataclass
class Adapter:
    name: str = MISSING
    args: dict[str, Any] = MISSING


@dataclass
class Quantization:
    name: str = MISSING
    args: dict[str, Any] = MISSING


@dataclass
class Hardware:
    device: str = MISSING
    devices: int = MISSING
    memory_gb: float = MISSING
    micro_batch_size: int = MISSING
    precision: str = MISSING
    gradient_checkpointing: bool = MISSING
    sharding: str = "none"  # as for Debug.reply_tokens


@dataclass
class Logging:
    report_to: str = MISSING
    steps: int = MISSING


@dataclass
class Evaluation:
    prompts: int = MISSING
    max_new_tokens: int = MISSING
    batch_size: int = MISSING
    gold: str | None = None  # as for Debug.reply_tokens


@dataclass
class Launcher:
    name: str = "basic"  # defaults, as for Monitor
    jobs: int | None = None
    attempts: int = 5
    dry_run: bool = False
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rule:
    level: str = MISSING
    patience: int = MISSING
    when: list[str] = MISSING
    advice: str = MISSING


@dataclass
class Monitor:
    window: int = 3  # defaults, because runs of before the monitor have none in their config.yaml
    rules: dict[str, Rule] = field(default_factory=dict)


@dataclass
class Debug:
    max_steps: int | None = MISSING
    rows: int | None = MISSING
    reply_tokens: int | None = None  # a default, because older runs have none in their config.yaml

    def shortened(self, reply_length: Any) -> int:
        """Tokens of the longest reply that training samples, given what `method.args` says."""
        return int(reply_length) if self.reply_tokens is None else min(int(reply_length), self.reply_tokens)


@dataclass
class Source:
    name: str | None = MISSING
    hardware: str | None = MISSING
    hours: float | None = MISSING


@dataclass
class Benchmark:
    """What `src/evaluate.py` measures: a task of lm-evaluation-harness and one of its metrics, times `scale` (100 for percent)."""

    task: str = MISSING
    metric: str = MISSING
    num_fewshot: int | None = None
    scale: float = 1.0
    filter: str = "none"


@dataclass
class Expected:
    """A published number, and the band in which a measured one counts as reproduced.

    `band` says whose it is (ours or source); `benchmark` what src/evaluate.py measures it with, where no stage logs it; `needs`
    what measures it where nothing here does (a paid judge).
    """

    published: float = MISSING
    source: str = MISSING
    low: float | None = None
    high: float | None = None
    band: str | None = None
    needs: str | None = None
    benchmark: Benchmark | None = None


@dataclass
class Stage:
    """One stage of a recipe, as the code below the doors sees it: plain dataclasses, everything resolved."""

    seed: int = MISSING
    batch_size: int = MISSING
    run: Run = MISSING
    model: Model = MISSING
    dataset: Dataset = MISSING
    method: Method = MISSING
    adapter: Adapter = MISSING
    quantization: Quantization = MISSING
    hardware: Hardware = MISSING
    logging: Logging = MISSING
    evaluation: Evaluation = MISSING
    launcher: Launcher = field(default_factory=Launcher)
    monitor: Monitor = field(default_factory=Monitor)
    debug: Debug = MISSING
    source: Source = MISSING
    expect: dict[str, Expected] = MISSING

    @property
    def path(self) -> Path:
        """The folder that holds everything the stage leaves behind."""
        return Path(self.run.root) / self.run.recipe / self.run.stage


GROUPS = (
    "model",
    "dataset",
    "method",
    "adapter",
    "quantization",
    "hardware",
    "logging",
    "launcher",
    "monitor",
    "debug",
)

# Settings that name files or folders, where `~` is the home folder.
PATHS = ("run.root", "model.path", "model.chat_template", "dataset.path", "dataset.mixture", "method.start_from",
         "method.reference", "method.reward_model")  # fmt: skip

# Mappings whose keys others decide: transformers, TRL, PEFT, bitsandbytes, submitit, the dataset's columns, a generator's settings.
OPEN = ("model.shape", "method.args", "adapter.args", "quantization.args", "launcher.args", "dataset.columns",
        "dataset.options")  # fmt: skip


def register() -> None:
    """Make the schema and the pure resolvers known to Hydra; composing changes nothing on disk."""
    node = OmegaConf.structured(Stage)
    for cls in (Model, Dataset, Method, Adapter, Quantization, Launcher):
        node[cls.__name__.lower()] = OmegaConf.structured(cls)
    for section, key in (place.split(".") for place in OPEN):
        node[section][key] = {}
        OmegaConf.set_struct(node[section][key], False)  # lets `method.args.warmup_steps=0.1` be written without a `+`
    ConfigStore.instance().store(name="schema", node=node)
    OmegaConf.register_new_resolver("repo", lambda: REPO.as_posix(), replace=True)
    OmegaConf.register_new_resolver("home", home, replace=True)
    OmegaConf.register_new_resolver("stage", _weights_of, replace=True)


def _weights_of(stage: str, *, _root_: DictConfig) -> str:
    """`${stage:sft}` is where that stage of the same recipe leaves its weights: runs/<recipe>/sft/final."""
    return f"{_root_.run.root}/{_root_.run.recipe}/{stage}/{FINAL}"


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The composed, unresolved config that `python src/train.py <overrides>` would run."""
    words = grouped(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(checkout("conf"))):
        return compose("train", overrides=words)


def checkout(folder: str) -> Path:
    """`conf` or `recipes`; raises ConfigError in a copy of the package that was installed without them."""
    if not (REPO / folder).is_dir():
        why = "this copy of rlhf was installed away from its checkout, which holds conf/ and recipes/"
        raise ConfigError(
            f"{REPO / folder} does not exist: {why}\n  fix: pip install --editable . in the folder of the checkout"
        )
    return REPO / folder


def hint(key: str) -> Any:
    """The type of a setting: `str | None` of `model.path`, Any below an open mapping, None where there is no such setting."""
    found: Any = Stage
    for part in key.split("."):
        inner = next((member for member in typing.get_args(found) if typing.get_origin(member) is dict), found)
        if dataclasses.is_dataclass(found):
            found = typing.get_type_hints(found).get(part)
        elif typing.get_origin(inner) is dict:
            found = typing.get_args(inner)[1]
        elif found is not Any:
            return None
    return found


def grouped(overrides: Iterable[str], sweep: bool = False) -> list[str]:
    """Words as they are typed at every door in the words of Hydra: the group of `recipe=support/dpo` is called `recipes`, texts
    that its grammar has no place for are quoted, and mappings can be given to a key that is null.

    Raises:
        Refusal: several values of a setting, `seed=1,2`, where there is no `sweep`.
    """
    words = [re.sub(r"^(\+*)recipe=", r"\1recipes=", readable(override, hint, sweep)) for override in overrides]
    for word in words if not sweep else ():
        key, _, value = word.partition("=")
        if ("," in value or "(" in value) and several(word):
            text = f", or {setting(key, value)} for that one text" if holds_text(hint(key)) else ""
            raise Refusal(key, value, "several values make a sweep", fix=f"python src/train.py ... -m{text}")
    return _mappings(words)


# OmegaConf 2.3 merges nothing into a mapping that is null (AttributeError), but makes one of an interpolation
_EMPTY = "${oc.decode:null}"


def _mappings(words: list[str]) -> list[str]:
    """Settings of a mapping that is null (dataset.markers), whole or by key, as one mapping after a word that makes it one."""
    for key in (key for section in typing.get_type_hints(Stage) for key in _null_mappings(section)):
        own = [word for word in words if re.match(rf"\+*{re.escape(key)}(=[{{]|\.)", word)]
        rest = [word for word in words if word not in own]
        if own and _is_null(rest, key):
            words = [*rest, f"{key}={_EMPTY}", f"++{key}={{{', '.join(_inside(key, own))}}}"]
    return words


def _null_mappings(section: str) -> list[str]:
    fields = typing.get_type_hints(hint(section)) if dataclasses.is_dataclass(hint(section)) else {}
    kinds = {name: [typing.get_origin(kind) or kind for kind in typing.get_args(of)] for name, of in fields.items()}
    return [f"{section}.{name}" for name, of in kinds.items() if dict in of and type(None) in of]


def _is_null(words: Sequence[str], key: str) -> bool:
    try:
        settings = [word for word in words if "=" in word and not word.startswith("-")]
        return OmegaConf.select(compose_config(settings), key) is None
    except (HydraException, OmegaConfBaseException, ConfigError):  # a sweep, or what is told when all is composed
        return True


def _inside(key: str, words: Sequence[str]) -> Iterator[str]:
    """`a: 1` and `b: {c: 2}` of `key={a: 1}` and `key.b.c=2`."""
    below: dict[str, list[str]] = {}
    for word in words:
        path, _, value = word.lstrip("+").partition("=")
        first = path.removeprefix(f"{key}.").partition(".")[0]
        if path == key:
            yield value.strip()[1:-1]
        elif path == f"{key}.{first}":
            yield f"{first}: {value}"
        else:
            below.setdefault(first, []).append(word)
    for first, inner in below.items():
        yield f"{first}: {{{', '.join(_inside(f'{key}.{first}', inner))}}}"


def to_stage(cfg: DictConfig) -> Stage:
    """Resolve everything, `~` in paths too; raises if a `???` is left or a `+` added what no stage reads, naming the key."""
    if unknown := [*_unknown(cfg, Stage)]:
        raise ConfigError("\n".join(unknown))
    if cfg.dataset.get("mixture") is not None and OmegaConf.is_missing(cfg.dataset, "path"):
        cfg.dataset.path = MIXTURE
    stage = cast(Stage, OmegaConf.to_object(cfg))
    for section, key in (place.split(".") for place in PATHS):
        part = getattr(stage, section)
        if hasattr(part, key):
            setattr(part, key, _at_home(getattr(part, key)))
    return stage


def _unknown(node: DictConfig, kind: type, above: str = "") -> Iterator[str]:
    known = typing.get_type_hints(kind)
    for key in map(str, node):
        if key not in known:
            yield f"{above}{key} is not a key{nearest(f'{above}{key}', [f'{above}{name}' for name in known])}"
        elif dataclasses.is_dataclass(known[key]):
            yield from _unknown(node[key], cast(type, known[key]), f"{above}{key}.")


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {_at_home(key): _at_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_at_home(inner) for inner in value]
    return home(value) if isinstance(value, str) else value


def read_stage(folder: Path) -> Stage:
    """The configuration that a run left in its folder, with the weights of other runs where these lie now.

    Raises:
        ConfigError: it is of another schema; with the run's command.
        DataError: it is not there, torn, or not what the run wrote.
    """
    files.verify(folder, files.CONFIG_FILE)
    file = folder / files.CONFIG_FILE
    try:
        stored = OmegaConf.load(file)
    except (OSError, ValueError, YAMLError) as error:
        why = str(error).partition("\n")[0]
        raise DataError(
            f"{file} can't be read: {why}\n  fix: bring it back from a copy, or make the run again"
        ) from error
    try:
        return _moved(to_stage(cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Stage), stored))), folder)
    except OmegaConfBaseException as error:
        again = shlex.join(json.loads((folder / "run.json").read_text())["command"])
        what = f"{error.full_key} is not read by this version ({str(error).splitlines()[0]})"
        fix = f"make the run again: {again} run.overwrite=true"
        raise ConfigError(f"{folder}/config.yaml: {what}\n  fix: {fix}") from error


def _moved(stage: Stage, folder: Path) -> Stage:
    """The stage with `run.root` where it is now: the paths below it were written down when it may have been elsewhere."""
    inside, then = Path(stage.run.recipe, stage.run.stage).parts, f"{stage.run.root}/"
    if folder.parts[-len(inside) :] != inside:
        return stage
    stage.run.root = folder.parents[len(inside) - 1].as_posix()

    def here(path: Any) -> Any:
        if isinstance(path, list):
            return [here(one) for one in path]
        if isinstance(path, dict):
            return {key: here(one) for key, one in path.items()}
        return (
            f"{stage.run.root}/{path.removeprefix(then)}" if isinstance(path, str) and path.startswith(then) else path
        )

    stage.model.path, stage.method.start_from = here(stage.model.path), here(stage.method.start_from)
    stage.method.reference, stage.method.reward_model = here(stage.method.reference), here(stage.method.reward_model)
    stage.dataset.path, stage.dataset.mixture = here(stage.dataset.path), here(stage.dataset.mixture)
    judge, colon, path = str(stage.evaluation.gold or "").partition(":")
    stage.evaluation.gold = f"{judge}:{here(path)}" if colon else stage.evaluation.gold
    return stage


def needs(cfg: DictConfig) -> list[str]:
    """Names of the stages whose weights this config reads, in order of appearance: every `${stage:x}` in it."""
    return list(dict.fromkeys(STAGE_REFERENCE.findall(str(OmegaConf.to_container(cfg, resolve=False)))))


def options(group: str) -> list[str]:
    """The options of a config group, or for `recipes` every `<recipe>/<stage>`."""
    root = checkout("recipes") if group == "recipes" else checkout("conf") / group
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def split_batch(stage: Stage) -> tuple[int, int]:
    """Rows in one forward pass of one device, and how many of those passes make an optimizer step."""
    devices, most = stage.hardware.devices, stage.hardware.micro_batch_size
    micro = min(most, max(1, stage.batch_size // devices))
    step = micro * devices
    if stage.batch_size < 1 or stage.batch_size % step:
        below = stage.batch_size // step * step
        what = f"does not divide by hardware.devices={devices} x hardware.micro_batch_size={micro}"
        fix = " or ".join(f"batch_size={size}" for size in (below, below + step) if size > 0)
        raise ConfigError(f"batch_size={stage.batch_size} {what}\n  fix: {fix}")
    return micro, stage.batch_size // step


def template_file(chat_template: str | None) -> Path | None:
    """The Jinja file that `model.chat_template` names, or None for the tokenizer's own and for `plain`."""
    if chat_template in (None, "plain"):
        return None
    name = str(chat_template)
    return Path(name) if "/" in name else REPO / "conf/chat_template" / f"{name}.jinja"


register()


def checked(cls: type, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """`settings` with the types of the fields of dataclass `cls`; all problems are reported at once.

    null, for a field that can't be null, leaves it to the default of `cls`.

    TRL's dataclasses can't be Hydra structured configs (unions of containers), and its own parser drops unknown keys silently, so
    the keys are checked here against the installed version, before any weight is loaded.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    unknown, owner = [key for key in settings if key not in known], f"{cls.__module__.split('.')[0]}.{cls.__name__}"
    problems = [f"{where}.{key} is not a field of {owner}{nearest(key, known)}" for key in unknown]
    values = {}
    for key, value in ((key, value) for key, value in settings.items() if key in known):
        if value is None and type(None) not in typing.get_args(hints[key]):
            continue
        try:
            values[key] = typed(hints[key], value)
        except ConfigError as error:
            problems.append(f"{where}.{key}={value!r} {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


# what a hint asks for, in words
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def typed(hint: Any, value: Any) -> Any:
    """`value` as the scalar of a hint such as `float | None`; for other hints as it is, where it is of one of their types.

    Raises ConfigError that says what it is not: of that type, or one of the choices of a Literal.
    """
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        choices = [str(choice) for choice in typing.get_args(hint)]
        raise ConfigError(f"is not one of {', '.join(choices)}{nearest(value, choices)}")
    kind = _scalar(hint)
    if value is None:
        return value
    if kind is None:
        kinds = {typing.get_origin(member) or member for member in _members(hint)}
        if kinds <= WORDS.keys() and not isinstance(value, tuple(kinds | ({int} if float in kinds else set()))):
            raise ConfigError(f"is not {' or '.join(sorted(WORDS[kind] for kind in kinds))}")
        return value
    schema = dataclasses.make_dataclass("Typed", [("value", kind, dataclasses.field(default=MISSING))])
    try:
        return OmegaConf.merge(OmegaConf.structured(schema), {"value": value}).value
    except OmegaConfBaseException as error:
        raise ConfigError(f"is not {WORDS[kind]}") from error


def _members(hint: Any) -> list[Any]:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return [kind for kind in members if kind is not type(None)]


def _scalar(hint: Any) -> type | None:
    """The one scalar type of a hint such as `float | None`; None where there are several, or a container."""
    kinds = _members(hint)
    return kinds[0] if len(kinds) == 1 and kinds[0] in (int, float, bool, str) else None
