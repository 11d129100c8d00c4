"""Bad input to a PPO stage, by the overrides of a command line: exit code, message, and that nothing is lost."""

import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rlhf.config import compose_config
from rlhf.door import translate
from rlhf.methods import ppo
from rlhf.rewards.functions import RULES, Rule
from rlhf.runs.stage import run_stage
from tests.models.helpers import broken, head_key, other_tokenizer


def command(workshop, root, **settings):
    """Overrides for a run of two updates on the tiny base, with a checkpoint after each."""
    usual = {
        "method": "ppo",
        "dataset": "support_prompts",
        "quantization": "none",
        "model__chat_template": "plain",
        "model__path": workshop.base,
        "method__start_from": workshop.sft,
        "method__reward_model": workshop.reward,
        "batch_size": 4,
        "debug__rows": 12,
        "debug__max_steps": 2,
        "method__args__response_length": 6,
        "method__args__missing_eos_penalty": "null",
        "method__args__save_steps": 1,
        "method__args__eval_steps": 1,
        "evaluation__prompts": 0,
        "run__root": root,
    }
    return [f"{key.replace('__', '.')}={value}" for key, value in {**usual, **settings}.items()]


def start(workshop, root, **settings):
    """Runs the stage; returns the exit code that the door would leave with, and what it would say."""
    overrides = command(workshop, root, **settings)
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_stage(compose_config(overrides), overrides)
    except Exception as error:
        known = translate(error)
        return getattr(known, "code", 1), str(known)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0, ""


def read(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(workshop, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "runs"
    assert start(workshop, root) == (0, "")
    return root


def other_base(workshop, folder):
    return broken(workshop, folder, lambda config, tensors: config.update(base_model_name_or_path="somewhere/else"))


def other_shape(workshop, folder):
    half = lambda key, tensor: tensor[:, :8].contiguous() if "q_proj.lora_A" in key else tensor  # noqa: E731
    return broken(workshop, folder, lambda config, tensors: tensors.update({k: half(k, t) for k, t in tensors.items()}))


def three_labels(workshop, folder):
    AutoModelForSequenceClassification.from_pretrained(workshop.base, num_labels=3).save_pretrained(folder)
    workshop.tokenizer.save_pretrained(folder)
    return folder


REFUSED = {
    "another base": (
        {"method__reward_model": other_base},
        r"method.reward_model=\S+: trained on the base somewhere/else, and this run uses \S+\n  fix: model.path=somewhere/else",
    ),
    "the weights of another base": (
        {"method__reward_model": other_shape},
        r"method.reward_model=\S+: .* this base needs \(4, 64\); it was trained",
    ),
    "another base under the policy": (
        {"method__start_from": other_base},
        r"method.start_from=\S+: trained on the base somewhere/else, and this run uses \S+\n  fix: model.path=somewhere/else",
    ),
    "another tokenizer": (
        {"method__reward_model": other_tokenizer},
        r"method.reward_model=\S+: its tokenizer differs from the policy's in 2 tokens \(first: \['w10', 'w11'\]\)\n  fix: "
        "train the reward model with this tokenizer, or use it as a separate scorer",
    ),
    "several labels": (
        {"method__reward_model": three_labels},
        r"method.reward_model=\S+: has 3 labels, and none is chosen\n  allowed: .*\n  fix: method.reward_label=",
    ),
    "pad is EOS": (
        {"model__pad_token": "'</s>'"},
        r"model.pad_token=</s>: .* equals the EOS token </s>, .*\n  fix: 'model.pad_token=\"<pad>\"'",
    ),
    "no room in a row": (
        {"method__args__response_length": 65},
        r"response_length \+ dataset.max_prompt_length = 129 is more than dataset.max_length=128\n  fix: dataset.max_len",
    ),
    "no room in the model": (
        {"method__args__response_length": 126, "dataset__max_length": 512},
        r"method.args.response_length=126: with the (\d+) tokens of train_dataset\[\d+\] this exceeds the model's context "
        r"of 128\n  fix: method.args.response_length=\d+",
    ),
    "a batch larger than the data": ({"batch_size": 16}, r"12 rows are left .* batch_size=16\n  fix: batch_size=12"),
    "a size of zero": ({"method__args__num_mini_batches": 0}, "method.args.num_mini_batches=0: must be above 0"),
}


SEEN_IN_WEIGHTS = {"the weights of another base", "no room in the model"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_and_costs_nothing(workshop, finished, tmp_path, monkeypatch, case):
    """Neither the loading of weights that need not be seen, nor the finished run that it was told to replace."""
    loaded, load_base = [], ppo.load_base
    monkeypatch.setattr(ppo, "load_base", lambda *a, **k: (loaded.append(case), load_base(*a, **k))[1])
    settings, message = REFUSED[case]
    made = {key: value(workshop, tmp_path / "made") if callable(value) else value for key, value in settings.items()}
    before = read(finished)
    code, said = start(workshop, finished, run__overwrite="true", **made)
    assert code == (3 if "rows" in message else 2), said
    assert re.search(message, said), said
    assert read(finished) == before and len(before) > 10
    assert bool(loaded) == (case in SEEN_IN_WEIGHTS)


COMMANDS = {
    "method.args.response_length": {"method__args__response_length": 126, "dataset__max_length": 512},
    "method.args.num_mini_batches": {"method__args__num_mini_batches": 3},
    "method.args.stop_token": {"method__args__stop_token": "eos", "method__args__stop_token_id": 2},
    "method.args.eos_token_ids": {"method__args__eos_token_ids": "[2,0]"},
    "method.args.missing_eos_penalty": {
        "method__args__missing_eos_penalty": 1,
        "method__args__eos_token_ids": "[]",
    },
    "method.args.kl_estimator": {"method__args__kl_estimator": "k3"},
    "method.args.batch_size": {"method__args__batch_size": 64},
    "method.args.kl_target": {"method__args__kl_target": -1},
    "method.args.activation_checkpointing_kwargs.use_reentrant": {
        "method__args__activation_checkpointing_kwargs": "{use_reentrant: true}"
    },
}


@pytest.mark.parametrize("key", COMMANDS)
def test_a_refusal_can_be_pasted_on_the_command_line(workshop, tmp_path, key):
    code, said = start(workshop, tmp_path, **COMMANDS[key])
    assert code == 2 and said.startswith(f"{key}="), said
    assert f"\n  fix: {key}=" in said or said.endswith("must be above 0"), said


@pytest.mark.parametrize(
    ("evaluation", "call", "metric"),
    [("null", 2, "reward/mean"), ("'evaluation[:4]'", 5, "eval_objective/scores")],
)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_score_that_is_no_number_stops_the_run_which_then_goes_on(
    workshop, tmp_path, monkeypatch, capsys, evaluation, call, metric, bad
):
    """Exit 4 in update 2 or in the evaluation after it (one comes before update 1); checkpoint-1 stays, and the same command ends as an unbroken run."""
    calls, folder = [], tmp_path / "broken" / "adhoc" / "ppo"

    def moody(prompts, replies, rows):
        calls.append({path: data for path, data in read(folder).items() if path.parts[0].startswith("checkpoint-")})
        return [bad if len(calls) == call else float(len(reply)) for reply in replies]

    monkeypatch.setitem(RULES, "moody", Rule(moody, reads="prompt"))
    settings = {"method__reward_model": "function:moody", "dataset__splits__eval": evaluation}
    code, said = start(workshop, tmp_path / "broken", **settings)
    assert code == 4 and f"{metric} is {bad} in update 2; " in said and "resume from it with a lower learning" in said
    assert len(calls) == call and calls[-1] and {path.parts[0] for path in calls[-1]} == {"checkpoint-1"}
    left = read(folder)
    assert {path: data for path, data in left.items() if path.parts[0].startswith("checkpoint-")} == calls[-1]
    assert start(workshop, tmp_path / "broken", **settings) == (0, "")
    assert "checkpoint-1" in capsys.readouterr().out
    assert start(workshop, tmp_path / "whole", **settings) == (0, "")
    ours, theirs = (
        load_file(tmp_path / name / "adhoc/ppo/final/adapter_model.safetensors") for name in ("broken", "whole")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_that_lost_its_end_does_not_count(workshop, tmp_path, monkeypatch, capsys):
    calls = []

    def moody(prompts, replies, rows):
        calls.append(1)
        return [float("nan") if len(calls) == 3 else float(len(reply)) for reply in replies]

    monkeypatch.setitem(RULES, "moody", Rule(moody, reads="prompt"))
    settings = {"method__reward_model": "function:moody", "debug__max_steps": 3}
    assert start(workshop, tmp_path, **settings)[0] == 4
    weights = tmp_path / "adhoc/ppo/checkpoint-2/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert start(workshop, tmp_path, **settings) == (0, "")
    assert "going on from" in (said := capsys.readouterr().out) and "checkpoint-1" in said


def test_a_reward_model_full_of_nan_leaves_with_exit_4(workshop, tmp_path, door):
    spoilt = broken(workshop, tmp_path, lambda config, tensors: tensors[head_key(tensors)].fill_(float("nan")))
    done = door("train.py", *command(workshop, tmp_path / "runs", method__reward_model=spoilt))
    assert done.returncode == 4 and len(done.stderr.splitlines()) <= 6, done.stderr
    assert "error: reward/mean is nan in update 1; stopped before another optimizer step" in done.stderr
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.parametrize("bug", [ValueError("a tensor of the wrong shape"), TypeError("no such argument")])
@pytest.mark.parametrize("place", ["assemble", "Loop"])
def test_a_bug_inside_the_constructor_is_no_configuration_error(workshop, tmp_path, monkeypatch, bug, place):
    def fail(*_, **__):
        raise bug

    monkeypatch.setattr(f"rlhf.ppo.trainer.{place}", fail)
    assert start(workshop, tmp_path) == (1, str(bug))
