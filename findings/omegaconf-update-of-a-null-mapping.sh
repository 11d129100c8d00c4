#!/usr/bin/env bash
# omegaconf 2.3.1: a mapping can't be given to a typed key that is null. OmegaConf.update, with its default merge=True, raises AttributeError about the
# library's own insides ('NoneType' object has no attribute 'get'), although the same value is taken by an assignment, by OmegaConf.merge and
# by merge=False, and a list is taken by a null list. Hydra 1.3.8 updates in this way, so `markers={user: x}` on a command line fails too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet omegaconf==2.3.1 hydra-core==1.3.8
cat >job.py <<'PYTHON'
from dataclasses import dataclass
from typing import Dict, List, Optional

import hydra
from hydra.core.config_store import ConfigStore


@dataclass
class Settings:
    markers: Optional[Dict[str, str]] = None
    numbers: Optional[List[int]] = None


ConfigStore.instance().store(name="settings", node=Settings)


@hydra.main(version_base=None, config_name="settings", config_path=None)
def main(cfg):
    print(cfg)


if __name__ == "__main__":
    main()
PYTHON
venv/bin/python - <<'PYTHON'
import subprocess, sys
from job import Settings
from omegaconf import OmegaConf

value = {"user": "x"}
try:
    OmegaConf.update(OmegaConf.structured(Settings), "markers", value)
    raise SystemExit("it is taken now")
except AttributeError as error:
    print("update:", error)
    assert "has no attribute" in str(error)
taken = [OmegaConf.structured(Settings) for _ in range(3)]
taken[0].markers = value
OmegaConf.update(taken[1], "markers", value, merge=False)
taken[2] = OmegaConf.merge(taken[2], {"markers": value})
assert all(cfg.markers == value for cfg in taken)
OmegaConf.update(numbers := OmegaConf.structured(Settings), "numbers", [1])
assert numbers.numbers == [1]
for word, code in (("markers={user: x}", 1), ("numbers=[1]", 0)):
    done = subprocess.run([sys.executable, "job.py", word], capture_output=True, text=True)
    print(word, "exit code:", done.returncode, *done.stderr.splitlines()[-1:])
    assert done.returncode == code
PYTHON
