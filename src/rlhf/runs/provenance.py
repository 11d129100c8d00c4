"""Where a number comes from: command, commit, versions and machine, with secrets struck out."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf.config import REPO

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "hydra-core")


def provenance() -> dict[str, Any]:
    """Where a number comes from: command, commit, versions and machine."""
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "command": ["python", *_relative_argv()],
        "git": _git(),
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES},
        "machine": {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count(), "gpu": gpu},
    }


def _relative_argv() -> list[str]:
    script = Path(sys.argv[0])
    shown = script.resolve().relative_to(REPO) if script.resolve().is_relative_to(REPO) else Path(script.name)
    return [shown.as_posix(), *(redact(argument) for argument in sys.argv[1:])]


def redact(text: str) -> str:
    """No token reaches a file: what follows a key that sounds like a secret, and anything shaped like a hub or API token."""
    text = re.sub(r"(?i)((?:^|[._])(?:token|api_key|password|secret)=).+", r"\1***", text)
    return re.sub(r"\b(?:hf_|sk-|wandb_v\d_)[A-Za-z0-9_-]{8,}", "***", text)


def redacted(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: redacted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [redacted(value) for value in node]
    return redact(node) if isinstance(node, str) else node


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
