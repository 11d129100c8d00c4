"""The trials of a sweep: a short folder for each, and in the end a table of what came of them."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlhf.files import RESULTS_FILE

LONGEST = 60  # bytes of a trial's folder name
ELSEWHERE = ("recipes", "run.recipe", "run.root", "run.overwrite")  # say where a trial lies, not what it is
MAIN = ("gold_score", "accuracy", "held_out_loss", "eval_loss", "train_loss")  # the first of these is the result


@dataclass
class Trial:
    """One run of a sweep; `code` is its exit code, `error` the first line of what ended it."""

    overrides: list[str]
    folder: Path
    code: int = 0
    error: str = ""


trials: list[Trial] = []  # of this process


def name(overrides: Sequence[str], swept: Sequence[str] = ()) -> str:
    """A trial's folder, `method.args.beta-0.1+seed-2`: the same overrides in any order give the same name, others another.

    Names need no quotes in bash or Hydra. Where characters are left out or the name would be long, it shows what is `swept`
    over (all, if nobody knows) and ends in a hash of all overrides.
    """
    own = sorted(override for override in overrides if override.partition("=")[0].lstrip("+~") not in ELSEWHERE)
    pairs = [override.partition("=")[::2] for override in own]
    whole = "+".join(f"{key}-{value}" for key, value in pairs) or "trial"
    if len(whole) <= LONGEST and all(re.fullmatch(r"[A-Za-z_][\w.]*=[\w.-]+", override, re.A) for override in own):
        return whole
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
    shown = [pair for pair in pairs if pair[0].lstrip("+") in swept] or pairs
    short = "+".join(f"{key.rpartition('.')[2].strip('+~')}-{_slug(value)}" for key, value in shown)
    return f"{short.encode()[: LONGEST - 9].decode(errors='ignore')}-{digest}"


def _slug(value: str) -> str:
    """The end of a path with its folder, or a value, in letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", "-".join(value.strip("\"'").rstrip("/").split("/")[-2:])).strip("-")


def _folder(*swept: str, _root_: DictConfig) -> str:
    return name(list(_root_.hydra.overrides.task), swept)


OmegaConf.register_new_resolver("trial", _folder, replace=True)  # of hydra.sweep.subdir in conf/train.yaml


def table() -> str:
    """Each trial with the overrides in which it differs from the others, its folder, exit code and main result."""
    from rlhf.output.tables import grid

    common = set.intersection(*(set(trial.overrides) for trial in trials)) if len(trials) > 1 else set()
    rows = [("trial", "differs in", "folder", "exit", "result")]
    for number, trial in enumerate(trials):
        differs = " ".join(override for override in trial.overrides if override not in common)
        rows.append((str(number), differs, str(trial.folder), str(trial.code), trial.error or _result(trial.folder)))
    return grid(rows)


def _result(folder: Path) -> str:
    file = folder / RESULTS_FILE
    results = json.loads(file.read_text()) if file.is_file() else {}
    numbers = {key: value for key, value in results.items() if isinstance(value, int | float)}
    key = next((key for key in (*MAIN, *numbers) if key in numbers), None)
    return f"{key} {numbers[key]:.4g}" if key else ""
