"""An adapter goes through every stage, evaluation and chat as the function that was trained, or is refused: by logits."""

import copy
import dataclasses
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rlhf.config import compose_config, to_stage
from rlhf.errors import Refusal
from rlhf.models.adapters import CARRIED, WRITTEN, lora_config, lora_defaults, with_adapter
from rlhf.models.base import load_base, save_final
from rlhf.models.layers import plain_4bit_kernels
from rlhf.models.roles import load_role, save_role
from rlhf.models.shared import load_roles, shared_roles

IDS = torch.arange(4, 28).unsqueeze(0)
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
# what an adapter can be and still be its own matrices
SHARED = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"alpha_pattern": {"down_proj": 64}, "rank_pattern": {"v_proj": 2}},
    "patterns with rslora": {"rank_pattern": {"layers.1.self_attn.q_proj": 8}, "use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "all but one": {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    "last layer": {"target_modules": ["q_proj", "lm_head"]},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva"},  # where training began is past once weights are loaded
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapter(workshop, folder, kind=LoraConfig, base=None, **settings):
    """An adapter on the workshop's base with every one of its parameters moved, saved by PEFT; and PEFT's logits of it."""
    torch.manual_seed(5)
    settings = PLAIN | settings if kind is LoraConfig else {"task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(base or workshop.load(), kind(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1 * ("magnitude" not in name))
                parameter.mul_(1.1 if "magnitude" in name else 1.0)
    model.save_pretrained(folder)
    return folder, logits(model)


@pytest.fixture(scope="module")
def composed(workshop):
    given = [
        "method=dpo",
        "dataset=support_rankings",
        f"model.path={workshop.base}",
        "model.chat_template=plain",
        "quantization=none",
    ]
    return to_stage(compose_config(given))


@pytest.fixture
def stage_on(composed):
    """`stage_on(start, model=path, quantization=stage's, **adapter.args)`: a stage on the workshop's base."""

    def change(start=None, model=None, quantized=None, **args):
        stage = copy.deepcopy(composed)
        stage.method.start_from = start and str(start)
        stage.model.path = str(model or stage.model.path)
        stage.quantization = quantized or stage.quantization
        stage.adapter.args |= args
        return stage

    return change


@pytest.mark.parametrize("name", SHARED)
def test_a_stage_and_the_roles_compute_what_peft_does(workshop, stage_on, tmp_path, name):
    start, theirs = adapter(workshop, tmp_path / "start", **SHARED[name])
    targets = {"target_modules": ["q_proj", "v_proj", "down_proj", "lm_head"]} if name == "last layer" else {}
    stage = stage_on(start, **targets)
    base = load_base(stage, workshop.tokenizer)
    assert float((theirs - logits(base)).abs().max()) > 0.02, "the adapter does nothing"
    model = with_adapter(stage, base, str(start), "CAUSAL_LM")
    assert torch.allclose(logits(model), theirs, atol=2e-5), "the next stage starts from another function"
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    # what that stage saves is read by PEFT, by evaluation and chat, and by PPO
    save_final(model, workshop.tokenizer, tmp_path / "final")
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "final")), theirs, atol=2e-5)
    role = load_roles(stage, workshop.tokenizer, {"policy": tmp_path / "final", "base": None})["policy"]
    with role.active():
        assert torch.allclose(logits(role.model), theirs, atol=2e-5)
    roles = shared_roles(workshop.load(), workshop.tokenizer, start, workshop.reward)
    for role in (roles.policy, roles.reference):
        with role.active():
            assert torch.allclose(logits(role.model), theirs, atol=2e-5), role
    save_role(roles.policy, tmp_path / "policy")
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy")), theirs, atol=2e-5)
    for _, parameter in roles.policy.trainable():
        parameter.data.add_(1.0)
    load_role(roles.policy, tmp_path / "policy")
    with roles.policy.active():
        assert torch.allclose(logits(roles.policy.model), theirs, atol=2e-5)


def test_a_reward_model_starts_at_the_hidden_states_of_its_adapter(workshop, stage_on, tmp_path):
    start, _ = adapter(workshop, tmp_path / "start", use_dora=True, alpha_pattern={"down_proj": 64})
    stage = stage_on(start)
    theirs = PeftModel.from_pretrained(workshop.load(), str(start)).eval().base_model.model.model
    ours = with_adapter(stage, load_base(stage, workshop.tokenizer, reward=True), str(start), "SEQ_CLS").eval()
    with torch.no_grad():
        wanted, found = (m(input_ids=IDS).last_hidden_state for m in (theirs, ours.base_model.model.model))
    assert torch.allclose(found, wanted, atol=2e-5)


def test_an_own_dora_needs_one_to_start_from(workshop, stage_on):
    stage = stage_on(workshop.sft, use_dora=True)
    with pytest.raises(
        Refusal, match=r"use_dora=true: method.start_from=\S+ has none(.|\n)*fix: adapter.args.use_dora=f"
    ):
        with_adapter(stage, load_base(stage, workshop.tokenizer), str(workshop.sft), "CAUSAL_LM")
    start = workshop.sft
    stage = stage_on(start, r=2)
    with pytest.raises(Refusal, match=r"adapter.args.r=2: .* has rank 4\n  fix: adapter.args.r=4"):
        with_adapter(stage, load_base(stage, workshop.tokenizer), str(start), "CAUSAL_LM")


# a value of each field of LoraConfig that the stages carry
VALUES = {
    "r": 4, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": ["q_proj"], "exclude_modules": ["q_proj"],
    "layers_to_transform": 0, "layers_pattern": "layers", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2},
    "use_rslora": True, "use_dora": True, "lora_bias": True, "fan_in_fan_out": True, "init_lora_weights": "gaussian",
}  # fmt: skip
# and of others, where no list or mapping is asked for
OTHERS = {
    "task_type": "SEQ_CLS", "peft_type": "IA3", "peft_version": "1", "base_model_name_or_path": "x", "revision": "main",
    "inference_mode": True, "bias": "lora_only", "megatron_core": "other", "qalora_group_size": 8, "use_qalora": True,
    "ensure_weight_tying": True, "modules_to_save": ["lm_head"], "trainable_token_indices": [1], "target_parameters": ["a"],
    "alora_invocation_tokens": [1], "layer_replication": [[0, 1]],
}  # fmt: skip
NEEDS = {"layers_to_transform": {"target_modules": ["q_proj"]},
         "layers_pattern": {"layers_to_transform": 0, "target_modules": ["q_proj"]}}  # fmt: skip


def test_each_field_of_lora_config_passes_or_is_refused(stage_on):
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert len(fields) == 42 and fields > CARRIED | WRITTEN and fields == lora_defaults().keys()
    for name in fields & CARRIED:
        config = lora_config(stage_on(**NEEDS.get(name, {}), **{name: VALUES[name]}), "CAUSAL_LM")
        assert getattr(config, name) in (VALUES[name], set(VALUES[name]) if name.endswith("modules") else None)
    refused = 0
    for name in fields - CARRIED:
        with pytest.raises(
            Refusal, match=rf"adapter\.args\.{name}=(.|\n)*fix: adapter.args.{name}=(null|none)"
        ) as said:
            lora_config(stage_on(**{name: OTHERS.get(name, {"a": 1})}), "CAUSAL_LM")
        fixed = None if said.value.fix.endswith("null") else "none"
        lora_config(stage_on(**{name: fixed}), "CAUSAL_LM")
        refused += 1
    assert refused == 28


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"r": 0}, r"adapter.args.r=0: must be at least 1\n  fix: adapter.args.r=16"),
        ({"lora_alpha": -1}, r"adapter.args.lora_alpha=-1: must be at least 1"),
        ({"rank_pattern": {"q_proj": 0}}, r"adapter.args.rank_pattern.q_proj=0: must be at least 1"),
        ({"lora_dropout": 1.5}, r"adapter.args.lora_dropout=1.5: must be from 0 up to 1"),
        (
            {"init_lora_weights": "pissa"},
            r"init_lora_weights=pissa: does not start(.|\n)*fix: \S+init_lora_weights=true",
        ),
        ({"init_lora_weights": "olora"}, r"init_lora_weights=olora: does not start"),
        ({"init_lora_weights": "eva"}, r"init_lora_weights=eva: does not start"),
        ({"init_lora_weights": False}, r"init_lora_weights=False: does not start"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]: trains whole (.|\n)*modules_to_save=null"),
        ({"bias": "all"}, r"adapter.args.bias=all: trains biases (.|\n)*fix: adapter.args.bias=none"),
        ({"target_parameters": ["weight"]}, r"target_parameters=\['weight'\]: is no adapter of linear layers"),
    ],
)
def test_settings_that_no_later_stage_could_read_are_refused_before_the_first(stage_on, settings, message):
    stage = stage_on(**settings)
    with pytest.raises(Refusal, match=message):
        lora_config(stage, "CAUSAL_LM")


def test_embeddings_take_no_adapter(workshop, stage_on):
    stage = stage_on(target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(Refusal, match=r"target_modules=model.embed_tokens: is a table of embeddings"):
        with_adapter(stage, load_base(stage, workshop.tokenizer), None, "CAUSAL_LM")


MORE = {
    "modules_to_save has \\['embed_tokens', 'lm_head'\\], which are full": {
        "modules_to_save": ["embed_tokens", "lm_head"]
    },
    "bias=lora_only trains biases": {"bias": "lora_only"},
    "init_lora_weights=pissa changed the base": {"init_lora_weights": "pissa"},
    "init_lora_weights=olora changed the base": {"init_lora_weights": "olora"},
    "trainable_token_indices=.* trains rows": {"trainable_token_indices": [5]},
    "target_parameters=.* is no adapter of linear": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
}


@pytest.mark.parametrize("message", MORE)
def test_an_adapter_that_is_more_than_its_matrices_is_merged_as_model_path(workshop, stage_on, tmp_path, message):
    """As method.start_from it is refused, in every way that reads one; the fix gives its very function."""
    start, theirs = adapter(workshop, tmp_path / "start", **MORE[message])
    stage = stage_on(start)
    fix = rf"(.|\n)*fix: model.path={start} method.start_from=null"
    with pytest.raises(Refusal, match=message + fix):
        with_adapter(stage, workshop.load(), str(start), "CAUSAL_LM")
    with pytest.raises(Refusal, match=message + fix):
        shared_roles(workshop.load(), workshop.tokenizer, start, workshop.reward)
    stage = stage_on(model=start)
    base = load_base(stage, workshop.tokenizer)
    assert torch.allclose(logits(base), theirs, atol=2e-5)
    assert base.config._name_or_path == str(start)
    fresh = with_adapter(stage, base, None, "CAUSAL_LM")
    assert torch.allclose(logits(fresh), theirs, atol=2e-5) and fresh.peft_config[
        "default"
    ].base_model_name_or_path == str(start)


def others():
    from peft import IA3Config, LoHaConfig, LoKrConfig, OFTConfig, PrefixTuningConfig, PromptTuningConfig, VeraConfig

    targets = {"target_modules": ["q_proj", "v_proj"]}
    return {
        "IA3": (IA3Config, targets | {"feedforward_modules": []}),
        "LoHa": (LoHaConfig, targets | {"r": 4}),
        "LoKr": (LoKrConfig, targets | {"r": 4}),
        "VeRA": (VeraConfig, {"target_modules": ["q_proj"], "r": 4}),
        "OFT": (OFTConfig, targets | {"oft_block_size": 8}),
        "prefix": (PrefixTuningConfig, {"num_virtual_tokens": 3}),
        "prompt": (PromptTuningConfig, {"num_virtual_tokens": 3}),
    }


@pytest.mark.parametrize("name", ["IA3", "LoHa", "LoKr", "VeRA", "OFT", "prefix", "prompt"])
def test_other_kinds_of_adapter_are_merged_or_refused(workshop, stage_on, tmp_path, name):
    kind, settings = others()[name]
    start, theirs = adapter(workshop, tmp_path / "start", kind, **settings)
    with pytest.raises(
        Refusal, match=r"method.start_from=\S+: peft_type is .* only LORA adapters can share(.|\n)*model.path="
    ):
        with_adapter(stage_on(start), workshop.load(), str(start), "CAUSAL_LM")
    stage = stage_on(model=start)
    if name in ("prefix", "prompt"):
        with pytest.raises(Refusal, match=rf"model.path={start}: is of the kind P\w+_TUNING, which adds to the prompt"):
            load_base(stage, workshop.tokenizer)
    else:
        assert torch.allclose(logits(load_base(stage, workshop.tokenizer)), theirs, atol=1e-4)


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens"]},
                                      {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])  # fmt: skip
def test_an_adapter_on_tied_weights_is_merged_into_one_of_them(workshop, stage_on, tmp_path, settings):
    """The other end of the model keeps the base's matrix; saved and loaded again, it is still the same function."""
    tied = workshop.load().config
    tied.tie_word_embeddings = True
    torch.manual_seed(0)
    type(workshop.load())(tied).save_pretrained(tmp_path / "base")
    workshop.tokenizer.save_pretrained(tmp_path / "base")
    base = type(workshop.load()).from_pretrained(tmp_path / "base")
    assert base.lm_head.weight is base.model.embed_tokens.weight
    start, theirs = adapter(workshop, tmp_path / "start", base=base, **settings)
    stage = stage_on(model=start)
    whole = load_base(stage, workshop.tokenizer)
    assert torch.allclose(logits(whole), theirs, atol=2e-5)
    save_final(whole, workshop.tokenizer, tmp_path / "final")
    again = load_base(stage, workshop.tokenizer, path=str(tmp_path / "final"))
    assert torch.equal(logits(again), logits(whole))


def test_an_adapter_of_gpt2_goes_on(workshop, stage_on, tmp_path):
    """Conv1D keeps its weights the other way round (`fan_in_fan_out`), and its head is tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(sizes).save_pretrained(tmp_path / "base")
    workshop.tokenizer.save_pretrained(tmp_path / "base")
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    start, theirs = adapter(workshop, tmp_path / "start", base=base, target_modules="all-linear", use_rslora=True)
    stage = stage_on(start, model=tmp_path / "base")
    model = with_adapter(stage, load_base(stage, workshop.tokenizer), str(start), "CAUSAL_LM")
    assert torch.allclose(logits(model), theirs, atol=2e-5)
    assert torch.allclose(logits(load_base(stage_on(model=start), workshop.tokenizer)), theirs, atol=2e-5)


def test_an_adapter_on_a_4bit_base_is_merged_and_quantized_again(workshop, stage_on, tmp_path):
    """QLoRA: the adapter's base is named in full precision; quantization=nf4 quantizes what was merged, once."""
    start, theirs = adapter(workshop, tmp_path / "start")
    nf4 = compose_config(["quantization=nf4", "hardware=cpu"])
    stage = stage_on(model=start, quantized=to_stage(nf4).quantization)
    base = load_base(stage, workshop.tokenizer)
    assert type(base.model.layers[0].mlp.up_proj).__name__ == "Linear4bit" and base.config._name_or_path == str(start)
    save_final(load_base(stage_on(model=start), workshop.tokenizer), workshop.tokenizer, tmp_path / "whole")
    once = load_base(stage, workshop.tokenizer, path=str(tmp_path / "whole"))
    assert torch.equal(logits(base), logits(once)) and not torch.allclose(logits(base), theirs, atol=1e-2)


def test_an_adapter_of_a_base_that_is_stored_in_4_bit_is_merged_into_whole_weights(workshop, stage_on, tmp_path):
    """As unsloth's adapters name their base; the weights that it was trained on are those that 4 bits stand for."""
    workshop.load(quantized=True).save_pretrained(tmp_path / "4bit")
    workshop.tokenizer.save_pretrained(tmp_path / "4bit")
    base = type(workshop.load()).from_pretrained(tmp_path / "4bit", dtype=torch.float32)
    plain_4bit_kernels(
        base
    )  # as training has it; bitsandbytes' own kernel of CPUs with avx512_bf16 is another function
    start, theirs = adapter(workshop, tmp_path / "start", base=base)
    whole = load_base(stage_on(model=start), workshop.tokenizer)
    assert type(whole.model.layers[0].mlp.up_proj).__name__ == "Linear"
    assert torch.allclose(logits(whole), theirs, atol=1e-4)


def test_a_torn_adapter_is_not_merged(workshop, stage_on, tmp_path):
    start, _ = adapter(workshop, tmp_path / "start")
    file = start / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1" not in name}, file)
    with pytest.raises(Refusal, match=r"model.path=\S+: does not fit its base: .*missing adapter keys"):
        load_base(stage_on(model=start), workshop.tokenizer)
    shutil.copytree(workshop.reward, tmp_path / "reward")
    with pytest.raises(Refusal, match=r"is the adapter of a reward model\n  fix: method.reward_model="):
        load_base(stage_on(model=tmp_path / "reward"), workshop.tokenizer)


def test_embeddings_saved_beside_an_adapter_must_be_those_of_the_base(workshop, stage_on, tmp_path):
    """PEFT saves the last layer with an adapter on it; trained or resized, it is not the base's any more."""
    start, _ = adapter(workshop, tmp_path / "start", target_modules=["q_proj", "lm_head"])
    file = start / "adapter_model.safetensors"
    tensors = load_file(file)
    whole = next(name for name in tensors if name.endswith("base_layer.weight"))
    stage = stage_on(start, target_modules=["q_proj", "lm_head"])
    with_adapter(stage, workshop.load(), str(start), "CAUSAL_LM")
    save_file(tensors | {whole: tensors[whole] + 1}, file)
    with pytest.raises(Refusal, match=rf"holds {whole}, which is not the base's(.|\n)*fix: model.path={start} method"):
        with_adapter(stage, workshop.load(), str(start), "CAUSAL_LM")
    theirs = logits(PeftModel.from_pretrained(workshop.load(), start))
    assert torch.allclose(logits(load_base(stage_on(model=start), workshop.tokenizer)), theirs, atol=2e-5)


def test_tokens_added_before_an_adapter_was_trained_are_merged_with_it(workshop, stage_on, tmp_path):
    """A tokenizer of two more tokens beside the adapter, its embeddings saved with it, as tutorials do after adding some."""
    base, more = workshop.load(), copy.deepcopy(workshop.tokenizer)
    more.add_tokens(["<|im_start|>", "<|im_end|>"])
    base.resize_token_embeddings(len(more))
    start, theirs = adapter(workshop, tmp_path / "start", base=base, modules_to_save=["embed_tokens", "lm_head"])
    more.save_pretrained(start)
    whole = load_base(stage_on(model=start), more)
    assert whole.get_input_embeddings().num_embeddings == 98 and torch.allclose(logits(whole), theirs, atol=2e-5)
