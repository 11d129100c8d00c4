"""What tests of several rooms read: the doors as modules."""

import functools
import importlib.util
import sys
from types import ModuleType

from rlhf.config import REPO


@functools.cache
def door_module(name: str) -> ModuleType:
    """`src/<name>.py`, which is a script and lies in no package."""
    spec = importlib.util.spec_from_file_location(f"door_{name}", REPO / f"src/{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
