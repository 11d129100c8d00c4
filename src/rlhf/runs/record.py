"""The run folder: who may write into it, what every run leaves there, and what makes a run finished, resumable or stale."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf import files
from rlhf.config import Stage, read_stage
from rlhf.data import sources
from rlhf.errors import ConfigError, DataError, nearest
from rlhf.files import FINAL
from rlhf.methods import METHODS
from rlhf.parallel import ranks
from rlhf.parallel.ranks import is_main
from rlhf.process import peak_memory_mb
from rlhf.runs.lock import held, hold
from rlhf.runs.provenance import provenance, redacted
from rlhf.shell import element, setting

# groups that no result follows from: where and how loudly a stage runs, what it is compared with, and what stops it
NO_INPUTS = ("run", "logging", "launcher", "source", "expect", "monitor")

# of a finished run: what others read
VERIFIED = (files.CONFIG_FILE, files.METRICS_FILE, files.RESULTS_FILE, files.SAMPLES_FILE)
TOLD = 5  # settings that a refusal names
PEAKS = {"cpu": "peak_memory_mb", "gpu": "peak_gpu_memory_mb"}  # in run.json


def identity(stage: Stage) -> dict[str, Any]:
    """What all ranks of a run must have in common: each setting by its name, and the code."""
    code = provenance()
    return {**dict(_leaves(redacted(_settings(stage)))), "commit": code["git"]["commit"], **code["versions"]}


def check_shared(stage: Stage) -> None:
    """Raise a ConfigError on a rank that does not see what the main rank has written beside the run's folder."""
    if ranks.size() > 1 and ranks.from_main(held(stage.path)) != held(stage.path):
        what = f"rank {ranks.rank()} on {platform.node()} does not see what rank 0 wrote there"
        raise ConfigError(f"run.root={stage.run.root}: {what}\n  fix: run.root= a folder that all machines share")


def inputs(stage: Stage) -> dict[str, str]:
    """What a stage's result follows from: its settings, its data, and the finished runs whose weights it reads."""
    digest = hashlib.sha256(json.dumps(_settings(stage), sort_keys=True, default=str).encode()).hexdigest()[:16]
    return {"config": digest, "data": sources.fingerprint(stage.dataset), **_below(stage)}


def _below(stage: Stage) -> dict[str, str]:
    """`stage:<name>`: the id of the run that is there now, for each run whose weights the stage reads."""
    paths = [Path(path) for path in _weights(stage) if path is not None and Path(path).name == FINAL]
    return {f"stage:{path.parent.name}": str(run.get("id")) for path in paths if (run := read_run(path.parent))}


def _settings(stage: Stage) -> dict[str, Any]:
    """The settings that a stage's result follows from."""
    settings = {k: v for k, v in asdict(stage).items() if k not in NO_INPUTS}
    settings["model"]["path"] = _portable(stage, stage.model.path)
    settings["hardware"]["devices"] = 1  # any number of them makes the same run
    del settings["hardware"]["sharding"]  # and so does what each of them holds
    # only plan.py reads these, so no run goes stale with them
    del settings["model"]["shape"], settings["dataset"]["rows"], settings["dataset"]["streaming"]
    for key in ("path", "mixture"):
        settings["dataset"][key] = _portable(stage, settings["dataset"][key])
    if stage.dataset.mixture is None:  # nor with keys that older runs did not have
        del settings["dataset"]["mixture"]
    if stage.debug.reply_tokens is None:
        del settings["debug"]["reply_tokens"]
    del settings["evaluation"]["gold"]  # reports ask, the stage doesn't
    settings["method"] |= {key: _portable(stage, getattr(stage.method, key)) for key in ("start_from", "reference")}
    if stage.method.reference is None:
        del settings["method"]["reference"]
    settings["method"] |= {"reward_model": _portable(stage, stage.method.reward_models)}
    return settings


def _weights(stage: Stage) -> tuple[str | None, ...]:
    """Everything that this stage reads weights from, by the names in its configuration."""
    return (stage.model.path, stage.method.start_from, stage.method.reference, *stage.method.reward_models)


def _portable(stage: Stage, path: Any) -> Any:
    """A path inside this recipe's runs without where the runs are, so that moving them keeps them up to date; of a list or a mapping
    each of them."""
    if isinstance(path, list):
        return [_portable(stage, one) for one in path]
    if isinstance(path, dict):
        return {key: _portable(stage, one) for key, one in path.items()}
    root = f"{stage.run.root}/{stage.run.recipe}/"
    return path.removeprefix(root) if isinstance(path, str) else path


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder; empty if there is none.

    Raises:
        DataError: it can't be read, or it is not there while the weights that it lists are.
    """
    file = folder / files.RUN_FILE
    if not file.exists() and (folder / files.FINAL).is_dir() and (folder / files.CONFIG_FILE).is_file():
        raise DataError(
            f"{file} is not there\n  fix: bring it back from a copy, or take {folder} away and make it again"
        )
    run = files.read_json(file) if file.exists() else {}
    if not isinstance(run, dict):
        raise DataError(f"{file} holds no object\n  fix: bring it back from a copy, or run.overwrite=true")
    return run


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """`run.json` of a recipe's stages by name, each after those that it builds on."""
    found = {path.name: run for path in folder.glob("[!.]*/") if (run := read_run(path))}
    return dict(sorted(found.items(), key=lambda item: (len(item[1].get("lineage", ())), item[0])))


def state(stage: Stage) -> str:
    """`absent`, `finished`, `resumable` (unfinished, same inputs) or `stale` (its inputs have changed since)."""
    run = read_run(stage.path)
    if not run:
        return "absent"
    if run.get("inputs") != inputs(stage):
        return "stale"
    return "finished" if run.get("status") == "finished" else "resumable"


def trained(stage: Stage) -> bool:
    """Whether training has ended and what it saved is still what was written: only the evaluation is left."""
    run = read_run(stage.path)
    return run.get("status") == "trained" and "final" in run and not files.differing(stage.path / FINAL, run["final"])


def changes(stage: Stage) -> str:
    """Which inputs of a stale run differ from now: settings, `seed 1 -> 2`, at most TOLD of them; data; stages before it."""
    then, now = read_run(stage.path).get("inputs", {}), inputs(stage)
    found = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    settings = _differing(stage) if "config" in found else []
    if settings:
        more = [f"{len(settings) - TOLD} more settings"] if len(settings) > TOLD else []
        found = [*settings[:TOLD], *more, *(key for key in found if key != "config")]
    return ", ".join(found)


def _differing(stage: Stage) -> list[str]:
    """`key then -> now` of each setting that is another in the folder's config.yaml; none where that can't be read."""
    try:
        stored = _settings(read_stage(stage.path))
    except (ConfigError, DataError):
        return []
    then, now = (dict(_leaves(redacted(settings))) for settings in (stored, _settings(stage)))
    pairs = {key: (then.get(key), now.get(key)) for key in [*then, *(key for key in now if key not in then)]}
    return [f"{key} {_short(old)} -> {_short(new)}" for key, (old, new) in pairs.items() if old != new]


def _leaves(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _short(value: Any) -> str:
    text = element(value)
    return text if len(text) <= 60 else f"{text[:30]}…{text[-29:]}"


def claim(stage: Stage) -> bool:
    """Own the folder until this process ends; whether to go on with what it holds.

    Raises:
        ResourceError: another process owns it.
        ConfigError: a finished run or one with other settings, what is no run of this stage, or nothing that can be written.
    """
    may_resume(stage)  # what is refused anyway takes no lock
    try:
        hold(stage.path, " ".join(sys.argv))
    except OSError as error:
        fix = "give run.root= a folder that can be written, or a shorter run.stage"
        raise ConfigError(f"run.root={stage.run.root}: {error.filename}: {error.strerror}\n  fix: {fix}") from error
    return may_resume(stage)  # once more, now that nobody else writes


def may_resume(stage: Stage) -> bool:
    """Whether there is an unfinished run to go on with; raises a ConfigError where the folder is not to be written into."""
    try:
        if stage.path.is_symlink() or (stage.path.exists() and not stage.path.is_dir()):
            what = f"a link to {os.readlink(stage.path)}" if stage.path.is_symlink() else "a file"
            raise ConfigError(f"{stage.path} is {what}\n  fix: {_free(stage)}, or take it away yourself")
    except OSError as error:
        why, fix = f"{error.filename}: {error.strerror}", "a shorter run.stage, or another run.root"
        raise ConfigError(f"run.stage={stage.run.stage}: {why}\n  fix: {fix}") from error
    if stage.run.overwrite:
        _ours(stage)
        return False
    if read_run(stage.path).get("stage", stage.run.stage) != stage.run.stage:
        _ours(stage)
    now = state(stage)
    if now in ("finished", "stale"):
        what = "a finished run" if now == "finished" else f"a run with other inputs ({changes(stage)})"
        fix = f"run.overwrite=true to replace it, or {_free(stage)} to keep both"
        raise ConfigError(f"{stage.path} holds {what}\n  fix: {fix}")
    if now == "absent" and stage.path.is_dir() and any(stage.path.iterdir()):
        raise ConfigError(f"{stage.path} is not empty and holds no run of ours\n  fix: {_free(stage)}")
    return now == "resumable"


def _free(stage: Stage) -> str:
    """The setting that gives a run a folder of its own: run.stage=sft-2."""
    names = (f"{stage.run.stage}-{number}" for number in count(2))
    return setting("run.stage", next(name for name in names if not stage.path.with_name(Path(name).name).exists()))


def _ours(stage: Stage) -> None:
    """Refuse to replace what is not a run of this very stage, or holds other runs."""
    if not stage.path.is_dir() or not any(stage.path.iterdir()):
        return
    inside = sorted(path.parent for path in stage.path.rglob(files.RUN_FILE) if path.parent != stage.path)
    try:
        named = read_run(stage.path).get("stage")
    except DataError:
        torn = (stage.path / files.RUN_FILE).exists()
        named = stage.run.stage if torn else None  # torn, and ours by its name
    if inside or named != stage.run.stage:
        what = (
            f"holds the run {inside[0]}" if inside else "is no run" if named is None else f"is the run of stage {named}"
        )
        why = f"{stage.path} {what}, which run.overwrite=true does not replace"
        raise ConfigError(f"{why}\n  fix: {_free(stage)}, or take the folder away yourself")


def set_aside(stage: Stage) -> Path | None:
    """Move the old run out of the way, to a hidden folder beside it that goes when the new one is finished."""
    aside = _aside(stage)
    if not is_main() or not stage.path.exists() or not any(stage.path.iterdir()):
        return None
    if aside.exists():  # two runs were begun over it: the one that was finished stays
        shutil.rmtree(stage.path)
    else:
        stage.path.rename(aside)
    print(f"the run before is kept in {aside} until this one is finished", flush=True)
    return aside


def _aside(stage: Stage) -> Path:
    return stage.path.with_name(f".before-{stage.path.name}")


class Record:
    """One run, from the moment it may write."""

    def __init__(self, stage: Stage, cfg: DictConfig | None, resume: bool, overrides: list[str]) -> None:
        self.stage, self.path, self.resumed = stage, stage.path, resume
        self.started = time.time()
        self.run: dict[str, Any] = {}
        if not is_main():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        before = read_run(self.path)
        self.run = {
            "id": before.get("id") or hashlib.sha256(f"{time.time_ns()}{os.getpid()}".encode()).hexdigest()[:16],
            "status": before.get("status", "running"),
            "recipe": stage.run.recipe,
            "stage": stage.run.stage,
            "seed": stage.seed,
            "inputs": inputs(stage),
            **provenance(),
            "lineage": lineage(stage),
            "seconds": before.get("seconds", 0.0),
            "resumed": before.get("resumed", 0) + int(resume),
        }
        self._save()
        self._yaml(files.CONFIG_FILE, asdict(stage))
        (self.path / ".hydra").mkdir(exist_ok=True)
        if cfg is not None:
            self._yaml(".hydra/config.yaml", OmegaConf.to_container(cfg))
        self._yaml(".hydra/overrides.yaml", overrides)

    def _yaml(self, name: str, content: Any) -> None:
        files.write_text(self.path / name, OmegaConf.to_yaml(OmegaConf.create(redacted(content))))

    def write(self, name: str, content: Any) -> None:
        """A JSON file of the run folder, complete or absent."""
        if is_main():
            files.write_json(self.path / name, content)

    def status(self, status: str) -> None:
        """Writes `running`, `trained` or `finished` into run.json, with the seconds and the peak memory so far.

        `peak_memory_mb` is the host's; runs on a GPU have its own beside it, as `peak_gpu_memory_mb`.
        """
        if is_main():
            self.run["status"] = status
            self.run["seconds"] = round(float(self.run["seconds"]) + time.time() - self.started, 1)
            self.started = time.time()
            if status == "trained":
                self.run["base"] = base_of(self.stage)
                self.run["final"] = files.listing(self.path / FINAL)
            if status == "finished":
                self.run["files"] = files.listing(self.path, *VERIFIED)
                shutil.rmtree(_aside(self.stage), ignore_errors=True)
            for key, peak in ((PEAKS[device], peak) for device, peak in peak_memory_mb().items() if peak):
                self.run[key] = max(self.run.get(key, 0.0), peak)
            self._save()

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint whose bytes are those that were written, for the main process; newer ones that are not are named and
        removed."""
        found, left_out = files.newest(self.path)
        for checkpoint, why in left_out.items():
            print(f"left out {checkpoint.name}: {why}", flush=True)
            shutil.rmtree(checkpoint)
        return found

    def shares(self, done: list[int]) -> None:
        """Notes which part of the work each of several ranks did."""
        if is_main() and len(done) > 1:
            self.run["ranks"] = [round(units / sum(done), 3) for units in done]

    def _save(self) -> None:
        files.write_json(self.path / files.RUN_FILE, self.run)


def check_final(folder: Path) -> None:
    """Raise a DataError where the weights that a run left are not those that it wrote."""
    if why := files.differing(folder / FINAL, read_run(folder).get("final", {})):
        again = " ".join(read_run(folder).get("command", ["its command"]))
        raise DataError(f"{why}\n  fix: bring it back from a copy, or {again} run.overwrite=true")


def check_weights(stage: Stage) -> None:
    """`check_final` of every run whose weights this stage reads."""
    for path in _weights(stage):
        if path is not None and Path(path).name == FINAL:
            check_final(Path(path).parent)


def check_current(folder: Path, stage: Stage) -> None:
    """Raise where the runs or the base below a finished run are gone, or not those that it was trained on."""
    check_weights(stage)
    run = read_run(folder)
    again = " ".join(run.get("command", ["its command"]))
    for name, now in _below(stage).items():
        if (then := run.get("inputs", {}).get(name)) != now:
            why = f"{folder} is stale: {name.removeprefix('stage:')} was run {then}, and is run {now} now"
            raise ConfigError(f"{why}\n  fix: {again} run.overwrite=true")
    if why := base_differs(stage, run.get("base", {})):
        raise DataError(
            f"{why}\n  fix: bring back the base that {folder} was trained on, or {again} run.overwrite=true"
        )


def base_of(stage: Stage) -> dict[str, Any]:
    """What tells the base of a stage from others of its name: the files of a local folder, the commit of a hub id."""
    path = stage.model.path
    if path is None or Path(path).name == FINAL:  # made here, or a run, which has its own listing
        return {}
    if (folder := Path(path).expanduser()).is_dir():
        held = [file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".json")]
        return {"files": files.listing(folder, *sorted(held))}
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json", revision=stage.model.revision)
    return {"commit": Path(cached).parent.name} if isinstance(cached, str) else {}


def base_differs(stage: Stage, then: dict[str, Any]) -> str:
    """How the base of a run is another now; empty if it is the same, or the run is of before it was noted."""
    folder = Path(str(stage.model.path)).expanduser()
    if then.get("files"):
        return f"{folder} is not there" if not folder.is_dir() else files.differing(folder, then["files"])
    return ""


def lineage(stage: Stage) -> list[dict[str, str]]:
    """Every finished run below this one, with the id of each: the whole chain of weights."""
    chain: dict[str, dict[str, str]] = {}
    for path in _weights(stage):
        run = read_run(Path(path).parent) if path is not None and Path(path).name == FINAL else {}
        if run:
            chain |= {entry["id"]: entry for entry in run.get("lineage", [])}
            chain[run["id"]] = {"stage": f"{run['recipe']}/{run['stage']}", "id": run["id"]}
        elif path is not None:
            version = str(stage.model.revision or "newest") if path == stage.model.path else "external"
            chain[path] = {"stage": path, "id": version}
    return list(chain.values())


def finished_stage(folder: Path, root: Path | None = None, reward: bool = False) -> Stage:
    """The configuration of a run that left weights, with the commit of its base on the hub; `root` holds all runs, by default the
    folder of the run's recipe's.

    Raises:
        ConfigError: there is no such run, it has not finished, or it trained a reward model, which does not talk, and no `reward`
            is asked for.
    """
    run = read_run(folder)
    if not run:
        root = root or folder.parent.parent
        runs = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("*/*/run.json"))
        raise ConfigError(
            f"{folder} is not a run{nearest(str(folder).removeprefix(f'{root}/'), runs)}\n"
            f"  runs: {', '.join(runs) or 'none; make demo makes some'}"
        )
    if run.get("status") != "finished":
        fix = f"start it again with its command: {shlex.join(run['command'])}"
        raise ConfigError(f"{folder} has not finished (status: {run.get('status')})\n  fix: {fix}")
    check_final(folder)
    stage = read_stage(folder)
    stage.model.revision = stage.model.revision or run.get("base", {}).get("commit")
    if METHODS[stage.method.name].leaves == "reward" and not reward:
        policies = ", ".join(name for name, row in METHODS.items() if row.leaves == "policy")
        what = "is a reward model: it scores replies and writes none"
        raise ConfigError(f"{folder} {what}\n  fix: a run of one of {policies}")
    return stage
