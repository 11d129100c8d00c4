"""Several processes make the run of one, whatever the method, and end together."""

import json
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf import files
from rlhf.benchmark.failures import EVENTS, LAUNCHERS, LIMIT, METHODS, launched, messages, seconds_until_gone
from rlhf.benchmark.processes import distance
from tests.faults.tiny import TINY, settings

KTO = ("method=kto", "dataset=support_thumbs", "run.recipe=support")
ROWS = ("batch_size=4", "hardware.micro_batch_size=1", "dataset.options.train=14", "logging.steps=1")  # 14 = 3 * 4 + 2
CLIP = "method.args.max_grad_norm=0"  # which would hide that a batch has other gradients
STAGES = {
    "sft": ("recipe=support/sft",),
    "reward": ("recipe=support/reward", "method.kwise=false", CLIP),
    "kwise": ("recipe=support/reward", "method.kwise=true", CLIP),
    "dpo": ("recipe=support/dpo", "method.args.loss_type=[sigmoid,sft]", CLIP),
    "kto": (*KTO, "hardware.micro_batch_size=2"),
    "ppo": ("recipe=support/ppo", "method.args.response_length=4", "method.args.num_mini_batches=2", "method.args.whiten_rewards=true",
            "method.args.kl_target=6.0", "method.args.max_update_kl=5.0", "method.args.reward_normalization=running"),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(door, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    for name in ("base", "sft", "reward"):
        done = door("train.py", *settings(name, root))
        assert done.returncode == 0, done.stderr
    return root


def words(name: str, root: Path, *more: str) -> list[str]:
    return [*STAGES[name], *TINY, *ROWS, *STAGES[name], f"run.root={root}", *more]


def run(door, *words: str) -> str:
    done = door("train.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(door, root):
    """`made("dpo", 2)`: the folder of a method's run on so many processes, made once."""

    @cache
    def make(name: str, devices: int) -> Path:
        said = run(door, *words(name, root, f"run.stage={name}-{devices}", f"hardware.devices={devices}"))
        folder = root / "support" / f"{name}-{devices}"
        if devices > 1:
            shares = json.loads((folder / "run.json").read_text())["ranks"]
            assert len(shares) == devices and 0.35 < shares[0] < 0.65 and f"0 did {shares[0]:.0%}" in said
        return folder

    return make


# all weights: tests/parallel/test_sharding.py; the rest of the methods' losses: python src/benchmark.py parts=[processes]
@pytest.mark.parametrize("name", ["sft", "kwise", "dpo", "kto", "ppo"])
def test_two_processes_make_the_run_of_one(made, name):
    told, weights = distance(made(name, 1), made(name, 2))
    assert told < (1e-6 if name == "ppo" else 1e-5) and weights < (1e-6 if name == "ppo" else 1e-4)


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_a_batch_is_one_however_it_is_cut(door, root, made, name):
    """Four micro-batches of a row, and one of four: also the last batch of a pass, which has fewer rows."""
    run(door, *words(name, root, f"run.stage={name}-whole", "hardware.micro_batch_size=4"))
    runs = [made(name, 1), root / "support" / f"{name}-whole"]
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line] for run in runs]  # fmt: skip
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert distance(*runs)[1] < 1e-4


@pytest.mark.parametrize(("name", "event"), zip(METHODS, ("exception", "guard", "SIGKILL", "SIGTERM"), strict=True))
def test_what_strikes_one_rank_ends_all_and_the_same_command_goes_on(door, root, made, tmp_path, name, event):
    """Each method and each event; docs/benchmarks.md has each with each."""
    folder = root / "support" / f"{name}-{event}"
    struck = words(name, root, f"run.stage={folder.name}")
    trap = ("at_rank_1", event, str(folder))
    started = door.start("train.py", *struck, "hardware.devices=2", folder=tmp_path, trap=trap)
    assert started.wait() == EVENTS[event]
    assert seconds_until_gone(started.pid, folder) < LIMIT
    last, left_out = files.newest(folder)
    assert last is not None and not left_out
    error = (tmp_path / "stderr").read_text()
    assert messages(error) == 1 and error.count("Traceback") == (event == "exception"), error
    again = run(door, *struck, f"hardware.devices={2 if event == 'guard' else 1}")
    assert f"going on from {last}" in again
    told, weights = distance(made(name, 1), folder)
    assert told < 1e-5 and weights < 1e-4


def test_weights_that_are_no_numbers_are_not_saved_between_two_log_lines(door, root):
    folder = root / "support/not-saved"
    rare = ("logging.steps=4", "method.args.save_steps=1", "method.args.eval_strategy=no", "hardware.devices=2")
    done = door(
        "train.py", *words("sft", root, f"run.stage={folder.name}", *rare), trap=("at_rank_1", "guard", str(folder))
    )
    assert done.returncode == 4 and "a weight is nan at step" in done.stderr, done.stderr
    last, left_out = files.newest(folder)
    assert last is not None and not left_out
    assert all(weight.isfinite().all() for weight in load_file(last / "adapter_model.safetensors").values())


def test_two_processes_of_torchrun_make_the_same_run(root, made, tmp_path):
    name = next(iter(LAUNCHERS))
    codes, error = launched(name, words("sft", root, "run.stage=launched", "hardware.devices=2"))
    assert codes == [0], error
    assert distance(made("sft", 2), root / "support/launched")[1] < 1e-6
    codes, error = launched("srun, by its variables", words("sft", root, "run.stage=no", "hardware.devices=4"))
    assert codes == [2, 2] and messages(error) == 1 and "fix: hardware.devices=2" in error, error


def test_a_stage_of_several_processes_is_refused_once(door, root):
    done = door("train.py", *words("dpo", root, "run.stage=no", "hardware.devices=2", "method.start_from=./nowhere"))
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "no such folder" in done.stderr
    done = door("train.py", *words("dpo", root, "run.stage=no", "hardware.devices=2", "method.args.optim=none"))
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "method.args.optim=none" in done.stderr
    assert not (root / "support/no").exists()
