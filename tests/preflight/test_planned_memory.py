"""The estimate of memory: against the measured peak of each method, bitsandbytes, and TRL's own defaults."""

import dataclasses
import inspect

import pytest

from rlhf.benchmark.planned import compare_plans
from rlhf.benchmark.tables import plan_table
from rlhf.benchmark.workload import SIZES
from rlhf.methods import FUSED, METHODS, TILE
from rlhf.methods.arguments import config_class
from rlhf.preflight.memory import (
    DEFAULTS,
    ENTROPY_CHUNK,
    GPU_TILE,
    LORA,
    Work,
    base_bytes,
    estimate,
    role_bytes,
    scorer_bytes,
)
from rlhf.preflight.sizes import read_shape, shape_of


@pytest.mark.slow
def test_plans_are_within_15_percent_of_measured_peaks():
    """The 41M-parameter NF4 model: what each method takes above the libraries, and all that the process takes."""
    found = compare_plans(SIZES["cpu"], device="cpu", threads=1, at_once=2)
    print(f"\n{plan_table(found)}")
    assert set(found["methods"]) == {name for name, row in METHODS.items() if row.measured}
    for method, one in found["methods"].items():
        assert one["planned_mb"] == pytest.approx(one["measured_mb"], rel=0.15), method
        assert one["planned_peak_mb"] == pytest.approx(one["peak_mb"], rel=0.15), method


def test_defaults_are_those_of_the_trainers(tmp_path):
    """Where a recipe is silent, the plan must assume what the trainer will do."""
    from peft import LoraConfig

    fields = [(cls, field) for cls in map(config_class, METHODS) for field in dataclasses.fields(cls)]
    assert {field.name for _, field in fields} >= set(DEFAULTS)
    for cls, field in fields:
        assert field.default == DEFAULTS.get(field.name, field.default), f"{cls.__name__}.{field.name}"
    for name, row in METHODS.items():
        silent = config_class(name)(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
        assert {key: getattr(silent, key) for key in row.defaults} == row.defaults, name
        assert row.reply_length is None or hasattr(silent, row.reply_length), name
    lora = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    assert (lora["r"], lora["lora_dropout"]) == (LORA["r"], LORA["lora_dropout"])
    from trl.trainer import sft_trainer, utils

    if FUSED:
        from trl.kernels import chunked_logprob

        assert f"\nTOKEN_CHUNK_SIZE = {GPU_TILE[0]}\n" in inspect.getsource(chunked_logprob)
        assert GPU_TILE[1] == utils._CHUNKED_LOGPROB_CHUNK_SIZE
    else:
        assert sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE == TILE
        assert inspect.signature(utils.entropy_from_logits).parameters["chunk_size"].default == ENTROPY_CHUNK


@pytest.mark.parametrize("double", [True, False])
def test_packed_weights_are_as_large_as_bitsandbytes_makes_them(compose_stage, double):
    from bitsandbytes.nn import Linear4bit

    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8}
    shape = read_shape({"model_type": "llama", "vocab_size": 64} | sizes, "model.shape")
    layer = Linear4bit(512, 512, bias=False, compress_statistics=double, quant_type="nf4").to("cpu")
    state = layer.weight.quant_state
    scales = [state.absmax] + ([state.state2.absmax] if double else [])
    packed = sum(t.numel() * t.element_size() for t in [layer.weight, *scales])
    stage = compose_stage(f"quantization.args.bnb_4bit_use_double_quant={str(double).lower()}")
    rest = (shape.embeddings + shape.head) * 4
    assert base_bytes(stage, shape, Work.of(stage)) - rest == packed * 7  # the matrices of a layer


def test_what_each_setting_saves(compose_stage):
    """Each setting that a user would turn moves the parts that it should, and no other."""
    base = ["model=llama3.1_8b", "dataset=ultrafeedback", "method=dpo", "hardware=gpu_24gb", "batch_size=16"]

    def update(*overrides):
        stage = compose_stage(*base, *overrides)
        return estimate(stage, shape_of(stage))["update"]

    before = update()
    moved = {
        "hardware.micro_batch_size=2": {"activations", "logits"},
        "hardware.gradient_checkpointing=false": {"activations"},
        "dataset.max_length=512": {"activations", "logits"},
        "method.args.use_weighting=true": {"activations", "logits"},
        "method.args.optim=adamw_8bit": {"optimizer"},
        "quantization=none": {"base"},
        "quantization=int8": {"base"},
        "adapter.args.r=64": {"policy", "reference", "optimizer", "gradients", "activations"},
    }
    for setting, parts in moved.items():
        after = update(setting)
        changed = {part for part in before.keys() | after.keys() if before.get(part) != after.get(part)}
        assert changed | {"fragments"} == parts | {"fragments"}, setting


def test_whole_models_are_trained_in_fp32_with_adams_two_moments(compose_stage):
    stage = compose_stage("recipes=tldr-pythia-1b/ppo")
    step, whole = estimate(stage, shape_of(stage))["step"], 4 * 1_011_781_632
    assert [step[role] for role in ("policy", "reference")] == pytest.approx([whole] * 2, rel=0.002)
    assert step["optimizer"] == 2 * (step["policy"] + step["value"]) and step["value"] < 0.95 * step["policy"]


def test_reward_models_are_counted(compose_stage):
    # a rule needs nothing, and a classifier of the hub has no size until it is downloaded
    for reward, models in (("[runs/a/final,runs/b/final]", 2), ("function:support", 0), ("[runs/a/final,org/name]", 1)):
        stage = compose_stage("recipes=support/ppo", f"method.reward_model={reward}")
        roles = role_bytes(stage, shape_of(stage))
        assert roles["reward"] == models * roles["value"], reward
    assert scorer_bytes("function:support", 1.0) == 0.0 and scorer_bytes("org/name", 1.0) is None


def test_a_pass_is_as_wide_as_its_micro_batches(compose_stage):
    ppo = ["recipes=support/ppo", "method.args.response_length=45"]
    assert Work.of(compose_stage(*ppo)).length == 112  # 64 + 45, to a multiple of 8
    assert Work.of(compose_stage(*ppo, "method.args.num_mini_batches=4")).rows == 16
    assert Work.of(compose_stage("recipes=support/reward")).rows == 4 * 4  # all four replies of a ranking
