"""Between the terminal and the package: typed arguments, exit codes, messages of at most six lines, Hydra's errors in our words.

The arguments of a door are a dataclass in its file. One name means one thing at every door: `recipe`, `run.root`, `page`.
"""

import dataclasses
import errno
import os
import re
import shlex
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlhf.config import GROUPS, REPO, Launcher, Stage, grouped, hint, options, split_batch, to_stage, typed
from rlhf.errors import ConfigError, Elsewhere, GuardStop, Preempted, Refusal, ResourceError, StageError, nearest
from rlhf.parallel import ranks
from rlhf.process import end_on_sigterm
from rlhf.runs import sweep
from rlhf.shell import SETTING, holds_text, home, setting, several

LINES = 6
SWEEP = {"-m", "--multirun"}
RENAMED = {"recipes": "recipe", "root": "run.root", "readme": "page", "index": "page"}
CONFIG = {*GROUPS, *(field.name for field in dataclasses.fields(Stage)), "recipe"}
T = TypeVar("T")


class Count(int):
    """A whole number of the command line that may be 0."""


_typed: list[str] = []  # the command line before it was put into Hydra's words


def enter(main: Callable[..., Any], schema: type | None = None) -> None:
    """Run a door and leave with the exit code of the design: 0 done, 1 a bug, 2 configuration, 3 data, 4 a guard, 5 resources,
    75 preempted and resumable, 130 interrupted.

    `main` gets the command line as the dataclass `schema`; without one it is Hydra's (train.py).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving with 1
    usage = sys.modules[main.__module__].__doc__ or ""
    end_on_sigterm()
    try:
        if schema is None:
            _compose_and_run(main, hydra_arguments(sys.argv[1:], usage))
        else:
            main(arguments(schema, sys.argv[1:], usage))
        sys.stdout.flush()
    except BaseException as error:
        _leave(error)


def _compose_and_run(main: Callable[..., Any], words: list[str]) -> None:
    """Hydra's part of train.py; after a sweep its table, and the exit code of the first trial that failed."""
    import hydra

    _typed[:], sys.argv[1:] = sys.argv[1:], words
    try:
        hydra.main(version_base="1.3", config_path="../conf", config_name="train")(main)()
        sweep.launch()
    finally:
        if sweep.trials:
            print(f"\n{sweep.table()}", flush=True)
    if SWEEP & set(words) and not sweep.trials:  # Hydra leaves with 0
        what = "no job to run; glob(...) chooses among the options of a group"
        fix = "the values themselves, e.g. seed=1,2"
        raise ConfigError(f"{' '.join(words)}: {what}\n  fix: {fix}")
    sys.exit(next((trial.code for trial in sweep.trials if trial.code), 0))


def arguments(schema: type[T], given: Sequence[str], usage: str) -> T:
    """`key=value` arguments as the dataclass `schema`; `--help` prints `usage`, a door's docstring.

    A field without a default is required, a field `overrides` takes the settings of a stage, `run_root` is `run.root`.

    Raises:
        ConfigError: a key that nobody knows (with the nearest that somebody does), a value of another type, a missing key.
    """
    if {"-h", "--help"} & set(given):
        print(usage.strip())
        sys.exit(0)
    fields = {field.name.replace("run_root", "run.root"): field for field in dataclasses.fields(schema)}  # type: ignore
    overrides = fields.pop("overrides", None)
    own, rest = {}, []
    for argument in given:
        key, equals, value = argument.partition("=")
        meant = RENAMED.get(key, "")
        if not equals:
            raise ConfigError(f"{argument!r} is not key=value\n  {example(usage)}")
        if key in fields:
            own[key] = value
        elif meant in fields or (meant == "run.root" and overrides):
            raise Refusal(key, value, f"{key}= is now {meant}=", fix=shlex.quote(f"{meant}={value}"))
        elif overrides and (key in CONFIG or key == "recipes" or not key.isidentifier()):
            rest.append(argument)
        else:
            known = {*fields, *(CONFIG if overrides else ())}
            raise ConfigError(f"{key} is not a key{nearest(key, known)}\n  {example(usage)}")
    hints, values = typing.get_type_hints(schema), {"overrides": rest} if rest else {}
    for key, text in own.items():
        try:
            values[fields[key].name] = value_of(text, hints[fields[key].name])
        except ConfigError as error:
            raise Refusal(key, text, str(error)) from error
    for field in dataclasses.fields(schema):  # type: ignore
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise missing(field.name, usage)
    return schema(**values)


def value_of(text: str, hint: Any) -> Any:
    """A text of the command line as the type `hint`: a scalar, choices, a list `[a,b]` or `a,b`, or one of these or None.

    Raises ConfigError. Whole numbers are counts and start at 1, a `Count` at 0.
    """
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kind = next(member for member in members if member is not type(None))
    if typing.get_origin(kind) is list:
        return [value_of(item.strip(), *typing.get_args(kind)) for item in text.strip("[]").split(",")]
    kind, least = (int, 0) if kind is Count else (kind, 1)
    try:
        value = typed(kind, text)
    except ConfigError as error:
        raise ConfigError(f"{text!r} {error}") from error
    if text == "":
        raise ConfigError("a value is empty")
    if kind is str:
        return home(value)
    if kind is int and value < least:
        raise ConfigError(f"{text!r} is not a whole number from {least}")
    if kind is bool and text not in ("true", "false"):
        raise ConfigError(f"{text!r} is not true or false")
    return value


def missing(key: str, usage: str) -> ConfigError:
    """For a required argument that is not there; where all are settings of a stage, a recipe is the first of them."""
    return ConfigError(f"{'recipe' if key == 'overrides' else key} is missing\n  {example(usage)}")


def example(usage: str) -> str:
    """The first command in a door's docstring."""
    found = re.search(r"python (src|recipes)/.+", usage)
    return found[0] if found else ""


def hydra_arguments(given: Sequence[str], usage: str) -> list[str]:
    """A command line as Hydra's parser wants it: flags first, recipes by the name of their group."""
    if not given:
        raise missing("recipe", usage)
    for argument, after in zip(given, [*given[1:], ""], strict=True):
        key, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--experimental-rerun"):
            why = "which could run anything; use the overrides of .hydra/overrides.yaml"
            raise ConfigError(f"--experimental-rerun loads a pickle, {why}")
        if key in ("hydra/launcher", "hydra/sweeper") or key.startswith("hydra.launcher."):
            fix = (
                "launcher=slurm, or another of conf/launcher/" if "launcher" in key else "-m with the values themselves"
            )
            raise ConfigError(f"{argument}: trials are started by our own launcher, which waits for each\n  fix: {fix}")
        if argument.startswith("--") and key.partition(".")[0] in CONFIG:
            fix = shlex.quote(f"{key}={value or after}")
            raise ConfigError(f"{argument}: settings have no dashes\n  fix: {fix}\n  {example(usage)}")
    flags = [argument for argument in given if argument in (*SWEEP, "-r", "--run")]
    many = bool(SWEEP & set(flags))
    words = grouped((argument for argument in given if argument not in flags), many)
    if many and not any(word.startswith("hydra.sweep.subdir=") for word in words):
        swept = ",".join(word.partition("=")[0].lstrip("+") for word in words if several(word))
        flags.append(f"hydra.sweep.subdir=${{trial:{swept}}}")
    return [*flags, *words]


def run_job(cfg: DictConfig) -> None:
    """One job of train.py. An error in a trial of a sweep is told and noted, and the others run; a signal ends them all."""
    from rlhf.runs import record  # not for --help
    from rlhf.runs.stage import run_stage

    if _typed:
        sys.argv[1:] = _typed  # which run.json keeps; Hydra has read its own
    hydra_cfg = HydraConfig.get()
    overrides = list(hydra_cfg.overrides.task)
    if hydra_cfg.mode != RunMode.MULTIRUN:
        try:
            stage = to_stage(cfg)
            sweep.refuse_alone(stage)
            if ranks.to_start(stage.hardware.devices):
                sys.exit(_run_ranks(stage, sys.argv[1:]))
            run_stage(cfg, overrides)
        except BaseException as error:  # Hydra would print words of its own
            _leave(error)
        return
    with open_dict(cfg):  # each job of a sweep is a run of its own
        cfg.run.root = home(cfg.run.root)
        cfg.run.stage = os.path.relpath(hydra_cfg.runtime.output_dir, os.path.join(cfg.run.root, cfg.run.recipe))
    trial = sweep.Trial(overrides, Path(cfg.run.root, cfg.run.recipe, cfg.run.stage))
    sweep.trials.append(trial)
    try:
        stage = to_stage(cfg)
        if record.state(stage) == "finished":  # a sweep that is started again goes on where it stopped
            print(f"{trial.folder} is finished and unchanged", flush=True)
        elif stage.launcher != Launcher():
            trial.stage = stage  # run by sweep.launch, when all are known
        elif ranks.to_start(stage.hardware.devices):
            trial.code = _run_ranks(stage, sweep.words(trial, stage))
            if trial.code in (Preempted.code, 130):
                raise SystemExit(trial.code)
        else:
            run_stage(cfg, overrides)
    except BaseException as error:
        trial.error = str(error).partition("\n")[0][:60] or type(error).__name__
        trial.code = _tell(error)
        if trial.code in (Preempted.code, 130) or not isinstance(error, Exception):
            raise SystemExit(trial.code) from error


def _run_ranks(stage: Stage, words: list[str]) -> int:
    """The exit code of a stage on several devices, each in a process of its own; what is refused without a library is refused once."""
    from rlhf.parallel.start import start
    from rlhf.preflight.settings import check_settings
    from rlhf.runs import record

    check_settings(stage)
    split_batch(stage)
    record.may_resume(stage)
    return start(stage.hardware.devices, [sys.executable, str(REPO / "src/train.py"), *words])


def _leave(error: BaseException) -> None:
    sys.exit(_tell(error))


def _tell(error: BaseException) -> int:
    """Print what there is to say about an error; returns the exit code."""
    known = translate(error)
    if isinstance(known, SystemExit):
        return known.code if isinstance(known.code, int) else int(known.code is not None)
    if isinstance(known, BrokenPipeError):  # whoever read our output has gone: `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if isinstance(known, KeyboardInterrupt):
        print("interrupted; the same command goes on, a stage from its last checkpoint", file=sys.stderr)
        return 130
    if isinstance(known, Elsewhere) and (ranks.rank() or known.code == Elsewhere.unheard or not str(known)):
        return known.code
    if isinstance(known, GuardStop | Preempted) and ranks.rank():  # of all ranks, and the main one tells
        return known.code
    if isinstance(known, ConfigError) and ranks.refused_beside():
        return known.code
    if isinstance(known, StageError):
        lines = str(known).splitlines()
        if len(lines) > LINES:
            lines = [*lines[: LINES - 1], f"… and {len(lines) - LINES + 1} more lines"]
        print("error: " + "\n".join(lines), file=sys.stderr)
        return known.code
    traceback.print_exception(known)
    print("this is a bug in the recipes: please report it with the lines above", file=sys.stderr)
    return 1


def translate(error: BaseException) -> BaseException:
    """Errors of Hydra, OmegaConf, torch and the system as ours; anything else as it is."""
    if isinstance(error, StageError | SystemExit | KeyboardInterrupt):
        return error
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _config_error(error)
    torch: Any = sys.modules.get("torch")  # whoever raised its error has imported it
    if isinstance(error, (MemoryError, *([torch.OutOfMemoryError] if torch else []))):
        why = str(error).partition("\n")[0] or "the machine has no more"
        fix = "a smaller hardware.micro_batch_size or dataset.max_length, hardware.gradient_checkpointing=true, or quantization=nf4"
        return ResourceError(f"out of memory: {why}\n  fix: {fix}")
    if _disk_full(error):
        place = getattr(error, "filename", None) or "the run folder"
        return ResourceError(
            f"no space left on the disk of {place}\n  fix: free some, or give run.root= a folder on another disk"
        )
    return error


def _disk_full(error: BaseException | None) -> bool:
    """Whether a full disk, a quota or a limit on the size of files is behind an error, which libraries put into words of theirs."""
    words = ("No space left", "os error 28", "Disk quota exceeded", "os error 122", "File too large", "os error 27")
    seen = set[int]()
    while error is not None and id(error) not in seen:  # who raises an error from itself makes a circle
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if type(error).__name__ in ("SafetensorError", "RuntimeError") and any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _config_error(error: BaseException) -> ConfigError:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None) or ""
    if isinstance(error, MissingConfigException):
        return _no_option(*str(error.missing_cfg_file or "").partition("/")[::2])
    if isinstance(error, OverrideParseException):
        return _unread(error.override)
    if isinstance(cause, MissingMandatoryValue):
        return ConfigError(f"{key} has no value\n  fix: set it on the command line or in the recipe")
    message = str(cause).splitlines()[0] if str(cause) else str(error)
    override, file = (re.search(f"{word} '([^']+)'", str(error)) for word in ("Could not override", "In"))
    place = f" (in {file[1]}.yaml)" if file else ""
    unknown = override and "No match in the defaults list" not in str(error)
    if unknown or "is not in struct" in message or "not in '" in message:
        known = [*_siblings(getattr(cause, "parent_node", None)), *(() if "." in key else (*CONFIG, "run.root"))]
        name = override[1] if override else key
        return ConfigError(f"{name} is not a key{place}{nearest(key.rpartition('.')[2] or name, known)}")
    if override:
        groups = [*GROUPS, "recipe"]
        return ConfigError(f"{override[1]} is not a group{nearest(override[1], groups)}\n  groups: {', '.join(groups)}")
    return ConfigError(f"{key or 'configuration'}: {message}{place}")


def _unread(word: str) -> ConfigError:
    """For a word that Hydra's grammar has no place for, where no text is meant."""
    found = SETTING.fullmatch(word)
    if not found:
        return ConfigError(f"{word!r} is not key=value or group=option")
    key, value, kind = found[2], found[3], hint(found[2])
    if kind is None and key not in GROUPS:
        known = [*(hint(key.rpartition(".")[0]) or Stage).__annotations__, *CONFIG]
        return ConfigError(f"{key} is not a key{nearest(key.rpartition('.')[2], known)}")
    if value[:1] in ("{", "["):
        inside = "what is not of ASCII letters, digits and /-+.$%*@?| needs quotes of its own"
        sample = setting(key, {"a": "b c"} if value[:1] == "{" else ["a b", "c d"])
        return Refusal(key, value, f"can't be read: {inside}, e.g. {sample}")
    return Refusal(key, value, "can't be read", fix=setting(key, value) if holds_text(kind) else "")


def _no_option(group: str, option: str) -> ConfigError:
    """For a file that a group does not have, or a group that is none."""
    if group == "recipes":
        stages = [name for name in options(group) if name.startswith(f"{option}/")]
        if stages:
            fix = f"recipe={stages[0]}, or all stages: python src/pipeline.py recipe={option}"
            return Refusal("recipe", option, "a stage is missing", allowed=stages, fix=fix)
        near = nearest(option, options(group))
        names = () if near else sorted({name.rpartition("/")[0] for name in options(group)})
        fix = f"a folder recipes/{option}/, or {setting('run.recipe', option)} to call your runs so" if names else ""
        return Refusal("recipe", option, f"no such stage of a recipe{near}", allowed=names, fix=fix)
    known = options(group) if group in GROUPS else [*GROUPS, "recipe"]
    return Refusal(group, option, f"no such option{nearest(option or group, known)}", allowed=known)


def _siblings(node: Any) -> Iterable[str]:
    try:
        return [str(key) for key in node.keys()]  # noqa: SIM118 - a config node
    except Exception:  # the parent may be missing or not a mapping
        return GROUPS
