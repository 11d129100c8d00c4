"""Every key of the configuration that a README or a page of docs/ names is there."""

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from peft import LoraConfig
from trl import DPOConfig, RewardConfig, SFTConfig

from rlhf.config import REPO, Stage
from rlhf.ppo.trainer import PPOConfig

PAGES = [REPO / "README.md", *sorted(REPO.glob("recipes/**/README.md")), *sorted(REPO.glob("docs/*.md"))]
GROUPS = [field.name for field in fields(Stage) if is_dataclass(get_type_hints(Stage)[field.name])]
KEY = re.compile(rf"(?<![\w/])(?:\w+\.)?((?:{'|'.join(GROUPS)})\.[a-z]\w*(?:\.[a-z]\w*)*)(?!\w*[(/])")
FILES = ("md", "yaml", "py", "json", "jsonl", "png")
ARGS = {
    "method": {field.name for kind in (SFTConfig, RewardConfig, DPOConfig, PPOConfig) for field in fields(kind)},
    "adapter": {field.name for field in fields(LoraConfig)},
    "launcher": {field.name for field in fields(SlurmQueueConf)},
}


def unknown(key: str) -> bool:
    """Whether no setting has this name; below a mapping other than `args` any name is one."""
    group, *path = key.split(".")
    kind = get_type_hints(Stage)[group]
    for place, name in enumerate(path):
        if not is_dataclass(kind):
            return name not in ARGS[group] if path[place - 1] == "args" else False
        hints = get_type_hints(kind)
        if name not in hints:
            return True
        kind = hints[name]
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_each_key_that_a_page_names_exists(page):
    keys = {key for key in KEY.findall(page.read_text()) if key.rpartition(".")[2] not in FILES}
    assert [key for key in sorted(keys) if unknown(key)] == []


def test_a_key_that_is_gone_is_found():
    assert KEY.findall("(`method.classifier`) and ppo.method.args.kl_coef=0") == [
        "method.classifier",
        "method.args.kl_coef",
    ]
    assert [unknown(key) for key in ("method.classifier", "method.args.klcoef", "monitor.rule.kl")] == [True] * 3
    assert [unknown(key) for key in ("method.args.kl_coef", "dataset.options.noise", "run.root")] == [False] * 3
    assert sum(len(KEY.findall(page.read_text())) for page in PAGES) > 40
