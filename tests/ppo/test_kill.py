"""Runs killed by SIGKILL at every stage of an update and of a checkpoint go on as if nothing had happened, bit for bit.

Each run is a process of its own, forked from a server that has the libraries loaded. The reward adds noise from the
global generators of torch, NumPy and Python, so that a run which restores only the weights ends elsewhere.
"""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from rlhf import files
from rlhf.files import checkpoints, replace_folder
from tests.workshop import QUIET

# what a run imports, so that the server has it
LLAMA = [f"transformers.{name}" for name in ("models.llama.modeling_llama", "integrations.bitsandbytes", "trainer")]
UPDATES, SAVES = 6, 2  # updates of a run, and between two checkpoints
TIMES = ("time/", "memory/", "eps", "eval_runtime")


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def calls(owner, name, when, *, after=False):
    """Dies before, or after, the call of `owner.name` for which `when(*args)` holds."""
    original = getattr(owner, name)

    def method(*args, **kwargs):
        chosen = when(*args)
        if chosen and not after:
            die()
        result = original(*args, **kwargs)
        if chosen:
            die()
        return result

    setattr(owner, name, method)


def within(trainer, owner, name, modules):
    """Dies in the first call of `owner.name` after update 3, after that many modules have computed something."""
    original = getattr(owner, name)

    def method(*args, **kwargs):
        if trainer.state.global_step < 3:
            return original(*args, **kwargs)
        left = iter(range(modules))
        torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: die() if next(left, None) is None else None)
        original(*args, **kwargs)
        raise AssertionError(f"{name} ended with fewer modules")

    setattr(owner, name, method)


def half_a_file(checkpoint):
    original = checkpoint.save_file

    def save(tensors, path, *rest):
        original(tensors, path, *rest)
        if path.name == "optimizer.safetensors" and "checkpoint-4" in path.parent.name:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()

    checkpoint.save_file = save


def arm(trainer, point):
    """Lays the trap; `checkpoint-4` is the one that is being written, `checkpoint-2` the complete one before it."""
    from rlhf.ppo import checkpoint
    from rlhf.ppo import trainer as module

    def called(name, parent="checkpoint-4"):
        return lambda path, *_: Path(path).name == name and parent in Path(path).parent.name

    {
        "rollout": lambda: within(trainer, trainer.loop, "sample", 90),
        "scoring": lambda: within(trainer, trainer.loop, "scorer", 15),
        "gradients": lambda: within(trainer, trainer.loop, "optimize", 150),
        "between two steps": lambda: calls(
            trainer.optimizer, "step", lambda: trainer.state.global_step == 3, after=True
        ),
        "evaluation": lambda: within(trainer, trainer, "evaluate", 60),
        "between two files": lambda: calls(checkpoint, "save_optimizer", lambda _, path: "checkpoint-4" in path.name),
        "half a file": lambda: half_a_file(checkpoint),
        "before the mark": lambda: calls(Path, "write_text", called(files.COMPLETE)),
        "before the name": lambda: calls(Path, "rename", lambda path, to: to.name == "checkpoint-4"),
        "after the name": lambda: calls(Path, "rename", lambda path, to: to.name == "checkpoint-4", after=True),
        "deleting the old": lambda: calls(files.shutil, "rmtree", lambda p, *_, **__: p.name == "checkpoint-2"),
        "final save": lambda: calls(module, "save_role", lambda role, path: path.parent.name == ".partial-final"),
    }[point]()


# the checkpoints that count after each kill
POINTS = dict.fromkeys(
    ("rollout", "scoring", "gradients", "between two steps", "evaluation", "between two files", "half a file"), [2]
) | {
    "before the mark": [2],
    "before the name": [2],
    "after the name": [2, 4],
    "deleting the old": [4],
    "final save": [6],
}


def noise(prompts, replies, rows):
    return torch.rand(len(prompts)) + torch.tensor(np.random.rand(len(prompts)) + random.random()).float()


def run(places, folder, kind, seed, updates=UPDATES, point=None):
    """A whole run, as a stage would do it: from the newest complete checkpoint, if there is one, to `final`."""
    from transformers import BitsAndBytesConfig

    from rlhf.models.layers import plain_4bit_kernels
    from rlhf.models.shared import shared_roles
    from rlhf.ppo.trainer import PPOConfig, PPOTrainer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(places["base"])
    if kind == "nf4":
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        base = AutoModelForCausalLM.from_pretrained(places["base"], dtype=torch.float32, quantization_config=nf4)
        plain_4bit_kernels(base)
        roles = shared_roles(base, tokenizer, places["sft"], places["reward"])
    else:
        policy = AutoModelForCausalLM.from_pretrained(places["base"], dtype=torch.float32)
        torch.manual_seed(3)
        reward, value = (
            AutoModelForSequenceClassification.from_pretrained(places["base"], num_labels=1, dtype=torch.float32)
            for _ in range(2)
        )
        roles = SimpleNamespace(policy=policy, reference=None, reward=reward, value=value)
    set_seed(seed)
    prompts = Dataset.from_dict({"input_ids": [[1, 5 + i, 20 + i][: 2 + i % 2] for i in range(12)]})
    args = PPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_mini_batches=2,
        num_ppo_epochs=1,
        max_steps=updates,
        response_length=6,
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        kl_target=0.5,
        kl_horizon=20,
        reward_normalization="running",
        save_steps=SAVES,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=SAVES,
        **QUIET | {"save_strategy": "steps"},
    )
    trainer = PPOTrainer(
        args, tokenizer, roles.policy, roles.reference, [roles.reward, noise], prompts, roles.value,
        eval_dataset=prompts.select(range(2)),
    )  # fmt: skip
    if point:
        arm(trainer, point)
    found = [path.name for path in checkpoints(Path(folder))]
    trainer.train(resume_from_checkpoint=True if found else None)
    replace_folder(Path(folder) / "final", lambda path: trainer.save_model(str(path)))
    history = [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in trainer.state.log_history]
    (Path(folder) / "result.json").write_text(json.dumps({"found": found, "history": history}))


@pytest.fixture(scope="module")
def start(workshop):
    """`start(folder, kind, ...)`: such a run in a process of its own; returns its exit code, negative for a signal."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__, "rlhf.ppo.trainer", "peft", "bitsandbytes", *LLAMA])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        multiprocessing.forkserver.ensure_running()
    places = {"base": workshop.base, "sft": workshop.sft, "reward": workshop.reward}

    def begin(folder, kind, seed=1, **options):
        process = server.Process(target=run, args=(places, folder, kind, seed), kwargs=options)
        process.start()
        process.join(300)
        return process.exitcode

    return begin


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
    """The folder of an unbroken run of each kind, made once."""
    made = {}

    def find(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("unbroken") / kind
            assert start(made[kind], kind) == 0
        return made[kind]

    return find


def same(folder, whole):
    result, wanted = (json.loads((path / "result.json").read_text()) for path in (folder, whole))
    assert result["history"] == wanted["history"] and len(wanted["history"]) >= UPDATES
    files = sorted(path.relative_to(whole) for path in (whole / "final").rglob("*.safetensors"))
    assert len(files) == 2
    for file in [*files, Path("samples.jsonl")]:
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    return result


@pytest.mark.parametrize(
    ("kind", "point"), [*(("nf4", point) for point in POINTS), ("full", "between two steps"), ("full", "half a file")]
)
def test_a_killed_run_loses_only_what_came_after_its_last_checkpoint(start, unbroken, tmp_path, kind, point):
    folder = tmp_path / "run"
    assert start(folder, kind, point=point) == -signal.SIGKILL
    assert not (folder / "final").exists()
    assert start(folder, kind, seed=99) == 0
    result = same(folder, unbroken(kind))
    assert result["found"] == [f"checkpoint-{update}" for update in POINTS[point]]
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-6"] and not list(folder.glob(".*"))
