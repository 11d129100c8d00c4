"""Between the terminal and the package: exit codes, messages of at most six lines, and Hydra's errors in our words."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlhf.config import GROUPS, options
from rlhf.errors import ConfigError, ResourceError, StageError, nearest

LINES = 6


def enter(main: Callable[[], Any]) -> None:
    """Run a door and leave with the exit code of the design: 0 done, 1 a bug, 2 configuration, 3 data, 4 a guard, 5 resources,
    75 preempted and resumable, 130 interrupted."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving with 1
    if any(argument.startswith("--experimental-rerun") for argument in sys.argv):
        _leave(
            ConfigError(
                "--experimental-rerun loads a pickle, which could run anything; use the overrides of .hydra/overrides.yaml"
            )
        )
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun", "-r", "--run")]
    sys.argv[1:] = [
        *flags,
        *(argument for argument in sys.argv[1:] if argument not in flags),
    ]  # argparse wants them first
    try:
        main()
    except BaseException as error:
        _leave(error)


_own_keys: set[str] = set()  # of the door that was entered, for the nearest key to a mistyped one


def own_arguments(usage: str, keys: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """A plain door's `key=value` arguments, and the rest; `--help` prints the door's docstring."""
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(usage.strip())
        sys.exit(0)
    _own_keys.update(keys)
    own, rest = {}, []
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} is not key=value\n  {usage.strip().splitlines()[2].strip()}")
        if key in keys:
            own[key] = value
        else:
            rest.append(argument)
    return own, rest


def run_job(cfg: DictConfig) -> None:
    """One job of train.py. In a sweep errors go up to Hydra, which runs the other jobs first."""
    from rlhf.config import to_stage
    from rlhf.runs import record
    from rlhf.runs.stage import run_stage

    hydra_cfg = HydraConfig.get()
    overrides = list(hydra_cfg.overrides.task)
    if hydra_cfg.mode == RunMode.MULTIRUN:
        from omegaconf import open_dict

        with open_dict(cfg):  # each job of a sweep is a run of its own
            cfg.run.stage = os.path.relpath(hydra_cfg.runtime.output_dir, os.path.join(cfg.run.root, cfg.run.recipe))
        stage = to_stage(cfg)
        if record.state(stage) == "finished":  # a sweep that is started again goes on where it stopped
            print(f"{stage.path} is finished and unchanged", flush=True)
        else:
            run_stage(cfg, overrides)
        return
    try:
        run_stage(cfg, overrides)
    except BaseException as error:
        _leave(error)


def _leave(error: BaseException) -> None:
    known = translate(error)
    if isinstance(known, SystemExit):
        raise known
    if isinstance(known, KeyboardInterrupt):
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if isinstance(known, StageError):
        lines = str(known).splitlines()
        if len(lines) > LINES:
            lines = [*lines[: LINES - 1], f"… and {len(lines) - LINES + 1} more lines"]
        print("error: " + "\n".join(lines), file=sys.stderr)
        sys.exit(known.code)
    traceback.print_exception(known)
    print("this is a bug in the recipes: please report it with the lines above", file=sys.stderr)
    sys.exit(1)


def translate(error: BaseException) -> BaseException:
    """Errors of Hydra, OmegaConf, torch and the system as ours; anything else as it is."""
    if isinstance(error, StageError | SystemExit | KeyboardInterrupt):
        return error
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _config_error(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError(
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'the machine has no more'}\n"
            "  fix: a smaller hardware.micro_batch_size or dataset.max_length, hardware.gradient_checkpointing=true, or quantization=nf4"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no space left on the disk of {error.filename or 'the run folder'}\n  fix: free some, or run.root=<another disk>"
        )
    return error


def _config_error(error: BaseException) -> ConfigError:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file or "")
        group, _, option = missing.partition("/")
        known = options(group) if group in (*GROUPS, "recipes") else [*GROUPS, "recipes"]
        shown = f"\n  allowed: {', '.join(known)}" if len(", ".join(known)) < 300 else ""
        return ConfigError(f"{group}={option} is not an option{nearest(option or group, known)}{shown}")
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override!r} can't be read: {str(error).splitlines()[-1]}\n  write key=value or group=option; quote what has spaces or brackets"
        )
    if isinstance(cause, MissingMandatoryValue):
        return ConfigError(
            f"{getattr(cause, 'full_key', '')} has no value\n  fix: set it on the command line or in the recipe"
        )
    key = getattr(cause, "full_key", None) or ""
    message = str(cause).splitlines()[0] if str(cause) else str(error)
    override = re.search(r"Could not override '([^']+)'", str(error))
    file = re.search(r"In '([^']+)'", str(error))
    place = f" (in {file[1]}.yaml)" if file else ""
    if (
        "is not in struct" in message
        or "not in '" in message
        or (override and "No match in the defaults list" not in str(error))
    ):
        known = _siblings(getattr(cause, "parent_node", None))
        name = key.rpartition(".")[2] or (override[1] if override else "")
        if "." not in key:
            known = [*known, *_own_keys]
        return ConfigError(f"{override[1] if override else key} is not a key{place}{nearest(name, known)}")
    if override:
        return ConfigError(
            f"{override[1]} is not a group{nearest(override[1], GROUPS)}\n  groups: {', '.join(GROUPS)}, recipes"
        )
    return ConfigError(f"{key or 'configuration'}: {message}{place}")


def _siblings(node: Any) -> Iterable[str]:
    try:
        return [str(key) for key in node.keys()]  # noqa: SIM118 - a config node
    except Exception:  # the parent may be missing or not a mapping
        return GROUPS
