"""KTO on rows that are tokenized here: the loss of the page, replies that stand after other prompts, what a run logs and refuses."""

import json
import math
import shutil
from itertools import groupby

import pytest
import torch

from rlhf.config import compose_config, to_stage
from rlhf.errors import ConfigError, Refusal
from rlhf.methods import METHODS
from rlhf.preflight.plan import borrowed
from rlhf.preflight.settings import check_settings
from tests.faults.tiny import TINY

KTO = ("method=kto", "dataset=support_thumbs")


@pytest.fixture(scope="module")
def build(chain):
    """`build(*settings)`: the trainer of a tiny stage on the finished stages of `support`."""
    from rlhf import methods
    from rlhf.data.prepare import prepare
    from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer

    def make(*settings, stage_name="kto"):
        given = [*KTO, *TINY, "run.recipe=support", f"run.stage={stage_name}", f"run.root={chain}", *settings]
        stage = to_stage(compose_config(given))
        tokenizer = load_tokenizer(stage)
        data = prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer))
        return methods.build(stage, tokenizer, data), data

    return make


def test_a_reply_stands_after_another_prompt_of_its_pass(build):
    trainer, data = build("batch_size=5", "hardware.micro_batch_size=5")
    rows = list(trainer.train_dataset)
    assert len(rows) == 16 and {tuple(row["completion_ids"]) for row in rows} == {
        tuple(row["completion_ids"]) for row in data.train
    }
    for start in range(0, 15, 5):
        own = [row["completion_ids"] for row in rows[start : start + 5]]
        assert [row["KL_completion_ids"] for row in rows[start : start + 5]] == [own[-1], *own[:-1]]
    assert rows[15]["KL_completion_ids"] == rows[14]["completion_ids"], "a pass of one row has no neighbour"
    again = list(build("batch_size=5", "hardware.micro_batch_size=5", "seed=1")[0].train_dataset)
    other = list(build("batch_size=5", "hardware.micro_batch_size=5", "seed=2")[0].train_dataset)
    assert again == rows and [row["prompt_ids"] for row in other] != [row["prompt_ids"] for row in rows]


def test_pairs_are_trained_in_mixed_order(build):
    """Where TRL trains all chosen replies of a thousand pairs before the first rejected one."""
    trainer, data = build("dataset=support_rankings", "dataset.options.train=40", "debug.rows=40", "batch_size=8")
    kinds = [bool(label) for batch in trainer.get_train_dataloader() for label in batch["label"]]
    assert len(kinds) == len(data.train) > 80 and sum(kinds) == sum(data.train["label"])
    assert max(len(list(same)) for _, same in groupby(kinds)) < 20, kinds


def test_the_loss_is_that_of_the_page(build):
    """With a policy that has moved from the reference: rewards and z from plain forward passes, one row at a time."""
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer, _ = build(
        "batch_size=8", "hardware.micro_batch_size=8", *(f"method.args.{k}={v}" for k, v in weights.items())
    )
    model = trainer.model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    rows = [trainer.train_dataset[i] for i in range(8)]

    def logp(prompt, reply, adapter):
        model.set_adapter(adapter)
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].float().log_softmax(-1)
        return float(sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(reply)))

    def gain(prompt, reply):
        return logp(prompt, reply, "default") - logp(prompt, reply, "ref")

    with torch.no_grad():
        gains = [gain(row["prompt_ids"], row["completion_ids"]) for row in rows]
        others = [gain(row["prompt_ids"], row["KL_completion_ids"]) for row in rows]
        model.set_adapter("default")
        batch = trainer.data_collator(rows)
        found = float(trainer.compute_loss(model, batch))
    z, beta = max(sum(others) / 8, 0.0), trainer.args.beta

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = [
        weights["desirable_weight"] * (1 - sigmoid(beta * (r - z)))
        if row["label"]
        else weights["undesirable_weight"] * (1 - sigmoid(beta * (z - r)))
        for row, r in zip(rows, gains, strict=True)
    ]
    assert max(map(abs, gains)) > 0.1, "the policy has moved"
    assert found == pytest.approx(sum(expected) / 8, abs=2e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["batch_size=1"], "fix: batch_size=2 hardware.micro_batch_size="),
        (["hardware.micro_batch_size=1"], "leave a forward pass one row"),
        (["method.args.desirable_weight=0"], "must be above 0"),
        (["method.args.undesirable_weight=-1"], "must be above 0"),
        (["method.args.beta=nan"], "must be at least 0"),
        (["method.learn=all"], "method.learn=all is about method=sft, not kto"),
        (["method.kwise=true"], "is about method=reward, dpo, not kto"),
        (["dataset.long_rows=truncate"], "would cut"),
    ],
)
def test_what_kto_cannot_work_with_is_refused_before_anything_is_loaded(compose_stage, settings, words):
    with pytest.raises(ConfigError) as caught:
        check_settings(compose_stage(*KTO, "method.start_from=null", "run.recipe=support", *settings), planned=["base"])
    assert words in str(caught.value)


def test_a_loss_without_neighbours_takes_one_row(compose_stage):
    stage = compose_stage(*KTO, "run.recipe=support", "batch_size=1", "method.args.loss_type=apo_zero_unpaired")
    check_settings(stage, planned=["base", "sft"])


def test_an_order_that_breaks_the_neighbours_names_its_setting(build):
    from rlhf.methods.arguments import named

    with pytest.raises(ValueError) as caught:
        build("method.args.train_sampling_strategy=random")
    stage = to_stage(compose_config([*KTO, "method.args.train_sampling_strategy=random"]))
    assert isinstance(refusal := named(stage, caught.value), Refusal)
    assert "method.args.train_sampling_strategy=random" in str(refusal)


def test_the_plan_borrows_from_dpo():
    assert borrowed(METHODS["kto"]) == "dpo"


@pytest.mark.slow
def test_a_run_logs_what_its_row_says(chain, door, tmp_path):
    shutil.copytree(chain, tmp_path / "runs", ignore=shutil.ignore_patterns("checkpoint-*"))
    given = [*KTO, *TINY, "run.recipe=support", "run.stage=kto", f"run.root={tmp_path}/runs", "logging.steps=1"]
    given += ["batch_size=8", "hardware.micro_batch_size=8", "dataset.options.train=32", "dataset.options.held_out=32"]
    done = door("train.py", *given, "debug.rows=32")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs/support/kto"
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert METHODS["kto"].metrics - set(results).union(*lines) == set()
    assert "thumbs   " in done.stdout and (folder / "final/adapter_model.safetensors").is_file()
    assert json.loads((folder / "data.json").read_text())["splits"]["train"]["thumbs"].keys() == {"up", "down"}
