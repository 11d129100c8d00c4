"""What config.json says is said before any weight is read: positions, attention, weights that are quantized already."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.errors import Refusal
from rlhf.models.adapters import with_adapter
from rlhf.models.base import load_base, save_final
from rlhf.models.checks import check_model, check_packing, learned_positions
from rlhf.models.shared import load_roles, shared_roles

IDS = torch.arange(4, 28).unsqueeze(0)
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT = {
    "vocab_size": 96,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "gpt2": GPT, "gptj": GPT | {"rotary_dim": 4}, "gpt_bigcode": GPT, "opt": SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "gpt_neo": SIZES | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}, "biogpt": SIZES,
    "llama": SIZES, "mistral": SIZES | {"num_key_value_heads": 1}, "gpt_neox": SIZES, "bloom": SIZES,
    "gemma2": SIZES | {"num_key_value_heads": 1, "head_dim": 8}, "qwen3": SIZES | {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": SIZES | {"num_key_value_heads": 1, "head_dim": 8},
}  # fmt: skip
LEARNED = {"gpt2", "gpt_bigcode", "opt", "gpt_neo", "biogpt", "gptj"}


def config(kind, **more):
    return AutoConfig.for_model(kind, **KINDS[kind] | more)


def saved(folder, kind, weights=False, **more):
    """A folder with config.json alone, or with random weights."""
    torch.manual_seed(0)
    if weights:
        AutoModelForCausalLM.from_config(config(kind, **more), attn_implementation="eager").save_pretrained(folder)
    else:
        config(kind, **more).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_learned_positions_are_known_from_the_config(kind):
    found = learned_positions(config(kind))
    assert found is None if kind not in LEARNED else 64 <= found <= 66


def test_rows_longer_than_the_positions_are_refused(tmp_path, stage_of, capsys):
    gpt2 = saved(tmp_path / "gpt2", "gpt2")
    short = {"dataset__max_prompt_length": 16, "evaluation__max_new_tokens": 16, "quantization": "none"}
    with pytest.raises(Refusal, match=r"dataset.max_prompt_length \+ method.args.response_length=66: model.path=\S+ has "
                       r"learned 64 positions(.|\n)*fix: dataset.max_prompt_length=32 method.args.response_length=32"):  # fmt: skip
        check_model(stage_of("function:exact_match", model__path=gpt2, **short | {"dataset__max_prompt_length": 60}))
    with pytest.raises(Refusal, match=r"dataset.max_prompt_length \+ evaluation.max_new_tokens=80"):
        check_model(stage_of("function:exact_match", model__path=gpt2, **short | {"evaluation__max_new_tokens": 64}))
    check_model(stage_of("function:exact_match", model__path=gpt2, **short))
    assert not capsys.readouterr().out
    llama = saved(tmp_path / "llama", "llama")
    check_model(stage_of("function:exact_match", model__path=llama, **short | {"evaluation__max_new_tokens": 64}))
    assert "=80 is beyond the 64 positions of model.path" in capsys.readouterr().out


def test_max_length_of_a_row_is_held_against_the_positions(tmp_path, compose_stage):
    opt = saved(tmp_path / "opt", "opt")
    given = [
        "method=sft",
        "dataset=support_demonstrations",
        f"model.path={opt}",
        "quantization=none",
        "dataset.splits.test=null",
    ]
    check_model(compose_stage(*given, "dataset.max_length=64"))
    with pytest.raises(Refusal, match=r"dataset.max_length=256: model.path=\S+ has (.|\n)*fix: dataset.max_length=64"):
        check_model(compose_stage(*given, "dataset.max_length=256"))


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("model.init.model_type=lama", r"model.init.model_type=lama: no architecture .*did you mean (\w+, )*llama"),
        ("model.init.model_type=bert_japanese", "model.init.model_type=bert_japanese: no architecture"),
        ("+model.init.hidden_sise=8", "model.init.hidden_sise=8: llama has no such size; did you mean hidden_size"),
        ("model.init.num_hidden_layers=-1", "model.init.num_hidden_layers=-1: a size starts at 1"),
        ("model.init.num_attention_heads=0", "model.init.num_attention_heads=0: a size starts at 1"),
        ("model.init.hidden_size=wide", "model.init={.*hidden_size: wide.*no model can be made of it: .*expected int"),
        ("model.init.hidden_size=32", r"no model can be made of it: .*\(32\) is not a multiple of .* heads \(6\)"),
        (
            "model.init={model_type: gpt2, n_embd: 30, n_head: 4}",
            "no model can be made of it: .*divisible by num_heads",
        ),
    ],
)
def test_sizes_of_which_no_model_can_be_made_are_refused(compose_stage, init, words):
    another = ["model=qwen3_8b"] if "{" in init else []
    with pytest.raises(Refusal, match=words):
        check_model(compose_stage("recipes=support/base", *another, init))


def test_a_size_may_have_the_name_that_all_architectures_share(compose_stage):
    init = "model.init={model_type: gpt2, hidden_size: 32, n_head: 4, attn_pdrop: 0, bos_token_id: 0}"
    check_model(compose_stage("recipes=support/base", "model=qwen3_8b", init))


def test_an_attention_that_the_architecture_lacks_is_refused(tmp_path, stage_of):
    gemma = saved(tmp_path / "gemma2", "gemma2", max_position_embeddings=4096)
    message = r"model.attention=sdpa: Gemma2ForCausalLM has none (.|\n)*eager\n  fix: model.attention=eager"
    with pytest.raises(Refusal, match=message):
        check_model(stage_of("function:exact_match", model__path=gemma))
    check_model(stage_of("function:exact_match", model__path=gemma, model__attention="eager"))


def stored(workshop, folder, **settings):
    """The workshop's base, saved in 4 bit as transformers does."""
    workshop.load(quantized=True).save_pretrained(folder)
    workshop.tokenizer.save_pretrained(folder)
    if settings:
        sizes = json.loads((folder / "config.json").read_text())
        sizes["quantization_config"] = settings
        (folder / "config.json").write_text(json.dumps(sizes))
    return folder


def test_weights_that_are_stored_in_4_bit_are_not_quantized_twice(workshop, tmp_path, stage_of, capsys):
    folder = stored(workshop, tmp_path / "4bit")
    options = {"model__path": folder, "method__start_from": "null"}
    stage = stage_of("function:exact_match", quantization="nf4", **options)
    check_model(stage)
    assert f"model.path={folder} is stored as nf4: it is loaded as it is" in capsys.readouterr().out
    once = workshop.load(quantized=True).eval()
    with torch.no_grad():
        assert torch.equal(load_base(stage, workshop.tokenizer).eval()(IDS).logits, once(IDS).logits)
    reward = load_base(stage, workshop.tokenizer, reward=True)
    assert reward.score.weight.shape == (1, 64) and reward.score.weight.dtype == torch.float32
    for wrong, fix in (({"quantization": "none"}, "quantization=nf4"), ({"quantization": "int8"}, "quantization=nf4"),
                       ({"quantization": "none", "adapter": "none"}, "adapter=lora quantization=nf4")):  # fmt: skip
        with pytest.raises(Refusal, match=rf"model.path=\S+: its weights are stored as nf4, (.|\n)*fix: {fix}"):
            check_model(stage_of("function:exact_match", **options | wrong))
    for method in ("gptq", "awq", "fp8", "compressed-tensors"):
        other = tmp_path / method
        shutil.copytree(folder, other)
        sizes = json.loads((other / "config.json").read_text())
        sizes["quantization_config"] = {"quant_method": method, "bits": 4}
        (other / "config.json").write_text(json.dumps(sizes))
        with pytest.raises(Refusal, match=f"stored as {method}, on which no method here trains"):
            check_model(stage_of("function:exact_match", **options | {"model__path": other}))


def test_an_adapter_whose_base_is_gone_says_how_to_name_it(workshop, tmp_path, stage_of, capsys):
    shutil.copytree(workshop.sft, tmp_path / "sft")
    stage = stage_of("function:exact_match", model__path=tmp_path / "sft", method__start_from="null")
    check_model(stage)
    assert f"is an adapter: merged into its base {workshop.base}" in capsys.readouterr().out
    file = tmp_path / "sft/adapter_config.json"
    file.write_text(file.read_text().replace(str(workshop.base), "/nowhere/base"))
    with pytest.raises(
        Refusal, match=r"is an adapter on the base /nowhere/base, which is not there\n  fix: sed -i "
    ) as said:
        check_model(stage)
    import subprocess

    subprocess.run(said.value.fix.replace("<folder of the base>", str(workshop.base)), shell=True, check=True)
    check_model(stage)
    assert not list((tmp_path / "sft").glob("tokenizer*"))
    from rlhf.models.tokenizer import load_tokenizer

    assert load_tokenizer(stage).get_vocab() == workshop.tokenizer.get_vocab()  # its base's


def test_weights_that_are_torn_or_not_there_are_refused(workshop, tmp_path, stage_of):
    folder = tmp_path / "base"
    shutil.copytree(workshop.base, folder)
    stage = stage_of("function:exact_match", model__path=folder, quantization="none")
    tensors, file = load_file(folder / "model.safetensors"), folder / "model.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}, file, {"format": "pt"})
    with pytest.raises(Refusal, match=r"model.path=\S+: 3 of its weights are not in its files, model.layers.1.mlp"):
        load_base(stage, workshop.tokenizer)
    save_file(tensors | {"model.norm.weight": torch.ones(3)}, file, {"format": "pt"})
    with pytest.raises(Refusal, match=r"model.path=\S+: can't be loaded: "):
        load_base(stage, workshop.tokenizer)
    file.write_bytes((workshop.base / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(Refusal, match=r"model.path=\S+: can't be loaded: "):
        load_base(stage, workshop.tokenizer)
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(sizes | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}})
    )
    with pytest.raises(Refusal, match=r"model.path=\S+: can't be loaded: (.|\n)*fix: model.trust_remote_code=true"):
        check_model(stage)
    (folder / "config.json").unlink()
    with pytest.raises(Refusal, match=r"model.path=\S+: can't be loaded: "):
        check_model(stage)


def narrow(workshop, folder):
    """A base whose last hidden states are half as wide as its layers, as those of OPT-350m are."""
    saved(folder, "opt", weights=True, word_embed_proj_dim=8)
    workshop.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_heads_are_as_wide_as_the_last_hidden_state(workshop, tmp_path, stage_of, adapter):
    options = {"quantization": "none", "adapter": adapter, "method__start_from": "null"}
    stage = stage_of("function:exact_match", model__path=narrow(workshop, tmp_path / "opt"), **options)
    model = load_base(stage, workshop.tokenizer, reward=True)
    assert model.score.weight.shape == (1, 8)
    if adapter == "lora":
        model = with_adapter(stage, model, None, "SEQ_CLS")
    with torch.no_grad():
        wanted = model.eval()(IDS).logits
    save_final(model, workshop.tokenizer, tmp_path / "reward")
    role = load_roles(stage, workshop.tokenizer, {}, reward=tmp_path / "reward")["reward"]
    with torch.no_grad(), role.active():
        assert torch.equal(role.head(role.hidden(IDS))[:, -1:], wanted)
    if adapter == "lora":
        base = load_base(stage, workshop.tokenizer)
        from peft import LoraConfig

        roles = shared_roles(base, workshop.tokenizer, None, tmp_path / "reward", LoraConfig(target_modules=["q_proj"]))
        assert roles.value.head.linear.weight.equal(roles.reward.head.linear.weight)
        with torch.no_grad(), roles.value.active():
            assert torch.allclose(roles.value.head(roles.value.hidden(IDS))[:, -1:], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neox", "gemma3_text", "qwen3", "gpt2", "opt", "bloom"])
def test_rows_of_a_pack_do_not_see_each_other_or_it_is_refused(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(kind), attn_implementation="eager" if kind == "bloom" else "sdpa")
    if kind in ("opt", "bloom"):
        with pytest.raises(
            Refusal, match=r"method.args.packing=true: rows of a pack read each other in \w+ with (.|\n)*=false"
        ):
            check_packing(model)
    else:
        check_packing(model)
    assert model.training
