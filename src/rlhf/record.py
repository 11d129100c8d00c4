"""The run folder: who may write into it, what every run leaves there, and what makes a run finished, resumable or stale."""

import contextlib
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf.config import REPO, Stage
from rlhf.data import sources
from rlhf.errors import ConfigError

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "hydra-core")
COMPLETE = "complete"  # written into a checkpoint after everything else: without it the checkpoint does not count
# keys that change where and how loudly a stage runs, what it is compared with and what stops it, but not its result
PLACEMENT = ("run", "logging", "source", "expect", "monitor")


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def inputs(stage: Stage) -> dict[str, str]:
    """What a stage's result follows from: its settings, its data, and the finished runs whose weights it reads."""
    settings = {k: v for k, v in asdict(stage).items() if k not in PLACEMENT}
    settings["model"] = {**settings["model"], "path": _portable(stage, stage.model.path)}
    # only plan.py reads these, so no run goes stale with them
    del settings["model"]["shape"], settings["dataset"]["rows"]
    settings["method"] = {
        **settings["method"],
        "start_from": _portable(stage, stage.method.start_from),
        "reward_model": [_portable(stage, path) for path in stage.method.reward_models],
    }
    found = {"config": _digest(settings), "data": sources.fingerprint(stage.dataset)}
    for key in _weights(stage):
        if key is not None and (run := read_run(Path(key).parent)) and Path(key).name == "final":
            found[f"stage:{Path(key).parent.name}"] = str(run.get("id"))
    return found


def _weights(stage: Stage) -> tuple[str | None, ...]:
    """Everything that this stage reads weights from, by the names in its configuration."""
    return (stage.model.path, stage.method.start_from, *stage.method.reward_models)


def _portable(stage: Stage, path: str | None) -> str | None:
    """A path inside this recipe's runs without where the runs are, so that moving them keeps them up to date."""
    root = f"{stage.run.root}/{stage.run.recipe}/"
    return path.removeprefix(root) if path is not None else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder; empty if there is none."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def state(stage: Stage) -> str:
    """`absent`, `finished`, `resumable` (unfinished, same inputs) or `stale` (its inputs have changed since)."""
    run = read_run(stage.path)
    if not run:
        return "absent"
    if run.get("inputs") != inputs(stage):
        return "stale"
    return "finished" if run.get("status") == "finished" else "resumable"


def changes(stage: Stage) -> str:
    """Which inputs of a stale run differ from now."""
    then, now = read_run(stage.path).get("inputs", {}), inputs(stage)
    return ", ".join(sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key)))


def claim(stage: Stage) -> bool:
    """Whether to go on with what the folder holds; refuses to touch a finished run or one with other settings."""
    if stage.run.overwrite:
        return False
    now = state(stage)
    if now == "finished":
        raise ConfigError(
            f"{stage.path} holds a finished run\n"
            "  fix: run.overwrite=true to replace it, or run.stage=<another name> to keep both"
        )
    if now == "stale":
        raise ConfigError(
            f"{stage.path} holds a run with other inputs ({changes(stage)})\n"
            "  fix: run.overwrite=true to replace it, or run.stage=<another name> to keep both"
        )
    if now == "absent" and stage.path.is_dir() and any(stage.path.iterdir()):
        raise ConfigError(f"{stage.path} is not empty and holds no run of ours\n  fix: run.stage=<another name>")
    return now == "resumable"


class Record:
    """One run, from the moment it may write."""

    def __init__(self, stage: Stage, cfg: DictConfig | None, resume: bool, overrides: list[str]) -> None:
        self.stage, self.path, self.resumed = stage, stage.path, resume
        self.started = time.time()
        if not is_main():
            return
        if not resume and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        before = read_run(self.path)
        self.run: dict[str, Any] = {
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
        resolved = OmegaConf.create(_redacted(asdict(stage)))
        (self.path / "config.yaml").write_text(OmegaConf.to_yaml(resolved))
        hydra = self.path / ".hydra"
        hydra.mkdir(exist_ok=True)
        if cfg is not None:
            (hydra / "config.yaml").write_text(
                OmegaConf.to_yaml(OmegaConf.create(_redacted(OmegaConf.to_container(cfg))))
            )
        (hydra / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create([_redact(o) for o in overrides])))

    def write(self, name: str, content: Any) -> None:
        """A JSON file of the run folder, complete or absent."""
        if is_main():
            write_json(self.path / name, content)

    def status(self, status: str, **more: Any) -> None:
        if is_main():
            self.run |= {"status": status, **more}
            self.run["seconds"] = round(float(self.run["seconds"]) + time.time() - self.started, 1)
            self.started = time.time()
            self.run["peak_memory_mb"] = max(self.run.get("peak_memory_mb", 0), *peak_memory_mb().values())
            self._save()

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was completely written; incomplete ones are removed."""
        found = []
        for folder in self.path.glob("checkpoint-*"):
            if is_complete(folder):
                found.append(folder)
            elif is_main():
                shutil.rmtree(folder)
        return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)

    def _save(self) -> None:
        write_json(self.path / "run.json", self.run)


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark is there and every file that it lists, if it lists any, has the size it lists."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text() or "{}")
    except (OSError, ValueError):
        return False
    files = {name: checkpoint / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())


def read_lines(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The entries of a .jsonl of the run folder up to a step; none if there is no file. A line cut off by a kill is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [entry for entry in found if entry["step"] <= last_step]


def keep_lines(path: Path, last_step: int) -> None:
    """Drops the lines of steps that a resumed run is about to repeat."""
    if is_main() and path.is_file():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in read_lines(path, last_step)))
        partial.replace(path)


def append_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    if is_main():
        with path.open("a") as lines:
            lines.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def write_json(path: Path, content: Any) -> None:
    """Through a temporary file, so that a killed process leaves the old content or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def lineage(stage: Stage) -> list[dict[str, str]]:
    """Every finished run below this one, with the id of each: the whole chain of weights."""
    chain: dict[str, dict[str, str]] = {}
    for path in _weights(stage):
        run = read_run(Path(path).parent) if path is not None and Path(path).name == "final" else {}
        if run:
            chain |= {entry["id"]: entry for entry in run.get("lineage", [])}
            chain[run["id"]] = {"stage": f"{run['recipe']}/{run['stage']}", "id": run["id"]}
        elif path is not None:
            chain[path] = {
                "stage": path,
                "id": str(stage.model.revision or "newest") if path == stage.model.path else "external",
            }
    return list(chain.values())


def provenance() -> dict[str, Any]:
    """Where a number comes from: command, commit, versions and machine."""
    return {
        "command": ["python", *_relative_argv()],
        "git": _git(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "machine": {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu()},
    }


def peak_memory_mb() -> dict[str, float]:
    """Peak resident memory of this process, and of its GPU if torch uses one, in MB."""
    peak = {"cpu": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def _relative_argv() -> list[str]:
    script = Path(sys.argv[0])
    shown = script.resolve().relative_to(REPO) if script.resolve().is_relative_to(REPO) else Path(script.name)
    return [shown.as_posix(), *(_redact(argument) for argument in sys.argv[1:])]


def _redact(text: str) -> str:
    """No token reaches a file: what follows a key that sounds like a secret, and anything shaped like a hub or API token."""
    import re

    text = re.sub(r"(?i)((?:^|[._])(?:token|api_key|password|secret)=).+", r"\1***", text)
    return re.sub(r"\b(?:hf_|sk-|wandb_v\d_)[A-Za-z0-9_-]{8,}", "***", text)


def _redacted(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _redacted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_redacted(value) for value in node]
    return _redact(node) if isinstance(node, str) else node


def _git() -> dict[str, Any]:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(REPO), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
