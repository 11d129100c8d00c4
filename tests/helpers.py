"""What tests of several rooms read: the doors as modules, stages composed once, and whether TRL has a PPO of its own."""

import copy
import functools
import importlib.util
import sys
from types import ModuleType

import pytest

from rlhf.benchmark.contenders import has_stock
from rlhf.config import REPO

needs_stock = pytest.mark.skipif(not has_stock(), reason="this TRL has no PPO of its own: stock runs on 1.12")


@functools.cache
def door_module(name: str) -> ModuleType:
    """`src/<name>.py`, which is a script and lies in no package."""
    spec = importlib.util.spec_from_file_location(f"door_{name}", REPO / f"src/{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def remember_stages(patch: pytest.MonkeyPatch) -> None:
    """While a test lasts, a plan that is made again finds what its stages are composed of, a tenth of a second each."""
    from rlhf.runs import pipeline

    composed = functools.cache(lambda words, compose=pipeline.compose_config: compose(words))
    patch.setattr(pipeline, "compose_config", lambda words: copy.deepcopy(composed(tuple(words))))
