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


# a key that sounds like a secret, and is no token of a tokenizer
SECRET = r"(?<![A-Za-z0-9_])(?!(?:eos|bos|pad|unk|sep|cls|mask)_)\w*(?:token|api_?key|password|passwd|secret)"
# what hubs, clouds and forges give out, by prefix and length: a folder that is called hf_checkpoints is none
SHAPES = (
    r"\b(?:hf_[A-Za-z0-9]{30,}|(?:sk|rk)-[A-Za-z0-9_-]{20,}|wandb_v\d_[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{16})\b"
)


def redact(text: str) -> str:
    """No token reaches a file: the value of a key that sounds like a secret, a URL's user and password, a known token's shape."""
    text = re.sub(rf"(?i)({SECRET}['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,}}&]+)", r"\1***", text)
    text = re.sub(r"(?<=://)[^/\s@]+:[^/\s@]*@", "***@", text)
    return re.sub(SHAPES, "***", text)


def redacted(node: Any) -> Any:
    """`redact` for every text in a tree of mappings and lists; under a secret's key anything goes."""
    if isinstance(node, dict):
        hidden = {key for key in node if isinstance(key, str) and re.fullmatch(SECRET, key, re.IGNORECASE)}
        return {key: "***" if key in hidden and value else redacted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [redacted(value) for value in node]
    return redact(node) if isinstance(node, str) else node


def _git() -> dict[str, Any]:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(REPO), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except OSError:  # a container without git
        return {"commit": "", "dirty": False}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
