"""Each refusal of PPO says the setting, its value, why, what is allowed and a fix."""

import ast
import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from rlhf.config import REPO
from rlhf.errors import ConfigError, Refusal
from rlhf.methods import METHODS
from rlhf.methods.arguments import COMPUTED, UNSUITED
from rlhf.ppo import checkpoint, config
from rlhf.ppo.assembly import assemble
from rlhf.ppo.trainer import PPOConfig
from rlhf.process import peak_memory_mb

CPU = torch.device("cpu")


@pytest.fixture
def arguments(tmp_path):
    return lambda **options: PPOConfig(output_dir=str(tmp_path), report_to="none", bf16=False, use_cpu=True, **options)


WORDS = ("missing_eos_mode", "reward_combination", "reward_normalization", "rollout_base", "kl_estimator")
OPTIONS = {
    "stop_token=eoz: is not a choice\n  allowed: eos, None": {"stop_token": "eoz"},
    "rollout_base=sparse: is not a choice\n  allowed: quantized, dense": {"rollout_base": "sparse"},
    "stop_token=eos: and stop_token_id=3 are both set\n  fix: stop_token=null": {
        "stop_token": "eos",
        "stop_token_id": 3,
    },
    "fsdp=full_shard: shards weights, which this trainer does not\n  fix: fsdp=null": {"fsdp": "full_shard"},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_an_option_that_cannot_work_is_refused(workshop, arguments, message):
    args = arguments()
    for name, value in OPTIONS[message].items():
        setattr(args, name, value)
    with pytest.raises(ConfigError) as caught:
        config.check_args(args, workshop.tokenizer)
    assert str(caught.value) == message


# read where another switch is on or a GPU is there, by the machine or by those who report; or what is so by default and can't be more so
ELSEWHERE = {
    *("activation_checkpointing_kwargs", "deepspeed", "fsdp_config", "stop_token_id", "num_train_epochs", "eval_delay"),
    *("metric_for_best_model", "greater_is_better", "model_adapter_name", "ref_adapter_name", "tf32", "log_level"),
    *("log_level_replica", "log_on_each_node", "project", "trackio_space_id", "trackio_bucket_id"),
    *("trackio_static_space_id", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_timeout"),
    *("local_rank", "skip_memory_metrics", "do_train", "do_eval", "do_predict", "remove_unused_columns"),
    *("average_tokens_across_devices", "eval_do_concat_batches", "dataloader_pin_memory", "dataloader_in_order"),
    "ds3_gather_for_generation",
}
ABOUT_ALL = {
    "__post_init__",
    "to_dict",
    "__str__",
    "__repr__",
    "choices",
    "check_args",
    "_asdict_inner",
    "_validate_args",
    "fields",
}


def test_every_field_is_read_or_refused(make_trainer, monkeypatch):
    """What a user sets has an effect, is set by a key of ours, or is named: nothing is taken and left aside."""
    read, get = set(), PPOConfig.__getattribute__

    def noting(args, name):
        if sys._getframe(1).f_code.co_name not in ABOUT_ALL:
            read.add(name)
        return get(args, name)

    monkeypatch.setattr(PPOConfig, "__getattribute__", noting)
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    monkeypatch.undo()
    unread = set(METHODS["ppo"].unread)
    fields = {field.name for field in dataclasses.fields(PPOConfig) if field.init}
    assert unread <= fields and len(unread) > 30
    assert read & unread <= {"include_num_input_tokens_seen"}, (
        "these have an effect"
    )  # it logs a count that no loop of ours keeps
    assert fields - read - unread - COMPUTED.keys() - UNSUITED.keys() - ELSEWHERE == set(), "neither read nor refused"
    assert fields >= ELSEWHERE


def test_choices_are_those_of_the_dataclass(arguments):
    choices = config.choices(arguments())
    assert choices.keys() == {"stop_token", *WORDS}
    assert choices["reward_combination"] == ("mean", "minimum", "mean_minus_spread")
    assert choices["stop_token"] == ("eos", None)


def test_all_problems_of_the_arguments_come_at_once_under_their_long_keys(workshop, arguments, monkeypatch):
    args = arguments(kl_estimator="k3", temperature=0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError) as caught:
        config.check_args(args, workshop.tokenizer, "method.args.")
    assert str(caught.value).splitlines() == [
        "method.args.temperature=0.0: must be above 0",
        "method.args.kl_estimator=k3: in the reward its gradient is biased (arXiv:2512.21852); it is logged as "
        "objective/kl_k3",
        "  fix: method.args.kl_estimator=k1",
        "WORLD_SIZE=2: a launcher has started several processes, which haven't met",
        "  fix: python src/train.py, or rlhf.parallel.ranks.meet first",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"per_device_train_batch_size": 6, "num_mini_batches": 3},
            "num_mini_batches=3: makes minibatches of 8 prompts, which do not split into micro-batches of 6\n"
            "  allowed: 1, 2, 4, 6, 8, 12, 24\n  fix: num_mini_batches=2",
        ),
        (
            {"per_device_train_batch_size": 6, "batch_size": 64},
            "batch_size=64: contradicts the 24 that follows from per_device_train_batch_size, "
            "gradient_accumulation_steps, num_mini_batches and total_episodes\n  fix: batch_size=null",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, options, message):
    with pytest.raises(Refusal) as caught:
        config.set_batch_sizes(arguments(gradient_accumulation_steps=4, **options), 100)
    assert str(caught.value) == message
    key, _, value = caught.value.fix.partition("=")
    config.set_batch_sizes(
        arguments(gradient_accumulation_steps=4, **options | {key: None if value == "null" else int(value)}), 100
    )


def test_pad_never_ends_a_reply(workshop, arguments):
    with pytest.raises(Refusal) as caught:
        config.eos_token_ids(arguments(eos_token_ids=[2, 0, 3]), workshop.tokenizer, None)
    assert str(caught.value) == (
        "eos_token_ids=[2, 0, 3]: holds the pad id 0, which is never sampled\n  fix: eos_token_ids=[2,3]"
    )


def test_there_must_be_a_checkpoint_to_resume_from(tmp_path):
    with pytest.raises(Refusal, match=r"=true: \S+ has no complete checkpoint\n  fix: resume_from_checkpoint=false"):
        checkpoint.find(True, tmp_path)


def test_there_must_be_something_to_evaluate_on(make_trainer):
    with pytest.raises(
        Refusal, match="eval_dataset=None: there is nothing to evaluate on\n  fix: pass one, or eval_str"
    ):
        make_trainer().evaluate()


ROLES = {
    r"reward_model=\[\]: nobody scores the replies": lambda workshop: {"reward": []},
    "ref_model=LlamaForCausalLM: is the policy or a reward model too, .* two roles need two objects": (
        lambda workshop: dict.fromkeys(("policy", "reference"), workshop.load())
    ),
    "ref_model=NoneType: model is a Role; both are a Role or neither is": (
        lambda workshop: {"policy": workshop.roles().policy}
    ),
    "peft_config=LoraConfig: model is a PeftModel already": (
        lambda workshop: {"policy": get_peft_model(workshop.load(), workshop.lora()), "peft": workshop.lora()}
    ),
    "value model=LlamaForSequenceClassification: is quantized and has no adapter": (
        lambda workshop: {"value": workshop.load_reward(quantized=True)}
    ),
    "policy model=LlamaForCausalLM: has no trainable parameter": (
        lambda workshop: {"policy": workshop.load().requires_grad_(False)}
    ),
    "reward embeddings=50: the vocabulary has 96 ids": (
        lambda workshop: {"reward": smaller(workshop.load_reward(), 50)}
    ),
}


def smaller(model, ids):
    model.resize_token_embeddings(ids)
    return model


@pytest.mark.parametrize("message", ROLES)
def test_roles_that_cannot_train_are_refused(workshop, message):
    plain = {"policy": workshop.load(), "reference": None, "reward": workshop.load_reward(), "peft": None}
    given = plain | {"value": workshop.load_reward()} | ROLES[message](workshop)
    with pytest.raises(Refusal, match=message + r"(.|\n)*\n  fix: \S+"):
        assemble(given["policy"], given["reference"], given["reward"], given["value"], given["peft"], CPU, 96)


@pytest.mark.parametrize(("platform", "resident"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_peak_memory_is_in_mb_of_2_to_the_20_bytes(monkeypatch, platform, resident):
    """macOS reports bytes, Linux units of 1024 bytes; host and GPU are both there."""
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=resident))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**20)
    assert peak_memory_mb() == {"cpu": 3.0, "gpu": 5.0}


def test_trl_experimental_is_imported_by_the_benchmark_alone():
    files = [file for file in (REPO / "src").rglob("*.py") if "trl.experimental" in imported(file)]
    assert {file.relative_to(REPO / "src/rlhf").as_posix() for file in files} == {
        "benchmark/contenders.py",
        "benchmark/recipe.py",
    }


def imported(file):
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {".".join(name.split(".")[:2]) for name in names}
