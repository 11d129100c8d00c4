"""What an export holds and what is refused: nothing appears that is not the run."""

import errno
import json
import os
import shutil
import stat
from dataclasses import replace

import pytest
import torch
import yaml

from rlhf import files
from rlhf.config import Quantization
from rlhf.errors import ConfigError, DataError, GuardStop, Refusal
from rlhf.export import check, run, weights
from rlhf.export import refuse as refusals
from rlhf.export.folder import write_folder
from rlhf.export.gguf import check_gguf, go_template, modelfile, pre_tokenizer
from rlhf.models.tokenizer import saved_tokenizer
from tests.export.hub import Hub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(chain, door, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ppo"
    done = door("export.py", "run=support/ppo", "to=[hf,gguf]", f"out={out}", f"run.root={chain}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of greedy replies the same" in done.stdout and str(out) in done.stdout
    return out


def test_a_folder_is_whole_and_plain(exported, chain):
    names = {path.name for path in exported.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert names >= {"model.safetensors", "support-ppo-f16.gguf", "Modelfile", "README.md", "export.json"}
    mask = os.umask(0)
    os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in exported.iterdir()} == {0o666 & ~mask}
    config, tokenizer = (json.loads((exported / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and config["torch_dtype"] == "float16"
    assert "quantization_config" not in config and str(chain) not in json.dumps(config)
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and tokenizer["additional_special_tokens"]
    generation = json.loads((exported / "generation_config.json").read_text())
    own = saved_tokenizer(chain / "support/ppo/final")
    assert generation["eos_token_id"] == own.eos_token_id and generation["pad_token_id"] == own.pad_token_id
    held, card = json.loads((exported / "export.json").read_text()), (exported / "README.md").read_text()
    assert 0 < held["max_logit"] < 0.1 and 0 <= held["kl"] < 1e-4 and held["run"] == "support/ppo"
    assert [entry["stage"] for entry in held["lineage"]] == ["support/base", "support/sft", "support/reward"]
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and head["library_name"] == "transformers"
    assert "([{'role': 'user', 'content': 'Hello'}], do_sample=False)" in card
    assert card.count("PATH/TO/THIS/FOLDER") == 4 and f"{held['max_logit']:.2g}" in card
    assert (exported / "Modelfile").read_text().startswith("FROM ./support-ppo-f16.gguf\n")


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3_text"])
def test_families_keep_the_names_that_other_programs_know(family, chain, tmp_path):
    """transformers 4.57 leaves at its default what it has no word for, and fills weights whose name it does not know at random."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}}
    kinds |= {"sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}
    rope = {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5} if family == "gpt_neox" else kinds
    sizes |= {"num_key_value_heads": 1} if family == "gemma3_text" else {}
    config = AutoConfig.for_model(family, **sizes, vocab_size=64, rope_parameters=rope)
    model, own = AutoModelForCausalLM.from_config(config).eval(), saved_tokenizer(chain / "support/ppo/final")
    ids = torch.tensor([[3, 4, 5, 6] * 5])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        write_folder(model, own, "float32", tmp_path)
        again = check.reload(tmp_path, "float32", reward=False).eval()
        assert (
            torch.equal(again(input_ids=ids).logits, before) and again.config.rope_parameters == config.rope_parameters
        )
    held = json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", "pt") as weights_file:
        names = set(weights_file.keys())
    if family == "gpt_neox":
        assert (held["rotary_pct"], held["rotary_emb_base"], held["rope_scaling"]) == (0.5, 5e4, None)
        assert "embed_out.weight" in names and "lm_head.weight" not in names
    else:
        scaling = {"rope_type": "linear", "factor": 8.0}
        assert (held["rope_theta"], held["rope_local_base_freq"], held["rope_scaling"]) == (5e5, 2e4, scaling)


def test_a_model_without_an_adapter_is_exported(chain, door, tmp_path):
    done = door("export.py", "run=support/base", "dtype=float32", f"out={tmp_path}/base", f"run.root={chain}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "base/export.json").read_text())["max_logit"] < 1e-5


def test_a_reward_model_scores_the_same_elsewhere(chain, door, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlhf.models.shared import load_roles
    from rlhf.rewards.scorers import scorer

    done = door("export.py", "run=support/reward", "dtype=float32", f"out={tmp_path}/reward", f"run.root={chain}")
    assert done.returncode == 0, done.stderr
    stage = refusals.exportable(chain / "support/reward", chain)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    role = load_roles(stage, tokenizer, {}, reward=chain / "support/reward/final")["reward"]
    prompts, replies = [[5, 6, 7], [8, 9]], [[10, 11, tokenizer.eos_token_id], [12, tokenizer.eos_token_id]]
    ours = scorer(stage, tokenizer, role)(prompts, replies, [])
    with torch.no_grad():
        theirs = torch.stack(
            [model(input_ids=torch.tensor([p + r])).logits[0, 0] for p, r in zip(prompts, replies, strict=True)]
        )
    assert torch.allclose(ours, theirs, atol=1e-5) and float(ours.std()) > 1e-4
    assert json.loads((tmp_path / "reward/export.json").read_text())["max_logit"] < 1e-4
    assert "('Hello', function_to_apply='none')" in (tmp_path / "reward/README.md").read_text()


@pytest.fixture
def copied(chain, tmp_path):
    """The chain's runs, to be changed."""
    shutil.copytree(chain / "support", tmp_path / "runs/support", ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path / "runs"


def export(root, name="support/dpo", to=("hf",), dtype="float32", prompts=2):
    out = root.parent / "out"
    run.export(refusals.refuse(root, name, to, dtype, out), to, dtype, out, prompts)
    return out


def nothing_left(root):
    return not [path for path in root.parent.iterdir() if path.name != "runs"]


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_runs_that_cannot_be_exported_are_refused(copied):
    folder = copied / "support/dpo"
    with pytest.raises(Refusal, match="to=gguf: support/reward is a reward model"):
        export(copied, "support/reward", to=("gguf",))
    with pytest.raises(Refusal, match="dtype=q8_0"):
        export(copied, dtype="q8_0")
    with pytest.raises(ConfigError, match="is not a run; did you mean support/dpo"):
        export(copied, "support/dpoo")
    change(folder / "run.json", status="running")
    with pytest.raises(ConfigError, match="has not finished") as told:
        export(copied)
    assert "python src/train.py" in str(told.value) or "train.py" in str(told.value)
    assert nothing_left(copied)


def test_int8_is_refused(copied):
    file = copied / "support/dpo/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["quantization"] = {"name": "int8", "args": {"load_in_8bit": True}}
    file.write_text(yaml.safe_dump(config))
    change(copied / "support/dpo/run.json", files={})
    with pytest.raises(Refusal, match="quantization=int8"):
        export(copied)


def test_a_stale_run_is_refused(copied):
    change(copied / "support/sft/run.json", id="0" * 16)
    with pytest.raises(
        ConfigError, match="is stale: sft was run .*, and is run 0000000000000000 now\n  fix: .*run.overwrite=true"
    ):
        export(copied)


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_a_base_that_is_not_the_one_it_was_trained_on_is_refused(copied, how):
    file = copied / "support/base/final/model.safetensors"
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.unlink() if how == "gone" else file.write_bytes(held)
    with pytest.raises(DataError, match="model.safetensors (is not there|holds other bytes)"):
        export(copied)


def test_a_base_of_no_run_is_known_by_its_files(compose_stage, tmp_path):
    from rlhf.runs import record

    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    (base / "config.json").write_text("{}")
    stage = compose_stage(
        "model=qwen3_8b", f"model.path={base}", "dataset=local_pairs", "dataset.path=x.jsonl", "method=dpo"
    )
    then = json.loads(json.dumps(record.base_of(stage)))
    assert set(then["files"]) == {"model.safetensors", "config.json"} and not record.base_differs(stage, then)
    (base / "model.safetensors").write_bytes(b"Weights")
    assert "holds other bytes" in record.base_differs(stage, then)
    shutil.rmtree(base)
    assert record.base_differs(stage, then) == f"{base} is not there"
    assert not record.base_differs(stage, {})  # a run of before it was noted


def test_a_full_disk_leaves_no_half_folder(copied, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "write_folder", full)
    with pytest.raises(OSError):
        export(copied)
    assert nothing_left(copied)


@pytest.mark.parametrize("what", ["original weights", "4 bit"])
def test_the_wrong_merges_are_found_to_be_other_models(copied, monkeypatch, what):
    from rlhf.benchmark.exports import merged_into_4_bit

    def wrong(stage, tokenizer):
        if what == "4 bit":
            return merged_into_4_bit(stage, tokenizer)
        return weights.whole(replace(stage, quantization=Quantization("none", {})), tokenizer)

    stage = refusals.exportable(copied / "support/dpo", copied)
    tokenizer = saved_tokenizer(stage.path / "final")
    trained = check.as_trained(stage, tokenizer, check.prompts_of(stage, tokenizer, 4))
    right, found = (
        check.difference(stage, tokenizer, trained, make(stage, tokenizer)) for make in (weights.whole, wrong)
    )
    right.refuse("the folder", "float32")
    with pytest.raises(GuardStop, match="is another model than the run"):
        found.refuse("the folder", "float32")
    monkeypatch.setattr(
        run, "whole", lambda *args: weights.whole(replace(stage, quantization=Quantization("none", {})), tokenizer)
    )
    for dtype in check.TOLERANCES:
        with pytest.raises(GuardStop, match="nothing was written"):
            export(copied, to=("gguf",), dtype=dtype)
        assert nothing_left(copied)


def test_a_run_without_replies_is_held_against_rows_of_its_data(copied, monkeypatch):
    monkeypatch.setattr(check, "final_samples", lambda path: [])
    for name in ("dpo", "sft"):
        stage = refusals.exportable(copied / f"support/{name}", copied)
        tokenizer = saved_tokenizer(stage.path / "final")
        prompts = check.prompts_of(stage, tokenizer, 3)
        assert len(prompts) == 3 and all(prompts) and "<|assistant|>" in tokenizer.decode(prompts[0])
        stage.dataset.splits.test = None
        assert len(check.prompts_of(stage, tokenizer, 3)) == 3


def test_a_hub_base_is_loaded_at_the_commit_of_training(copied):
    change(copied / "support/dpo/run.json", base={"commit": "a" * 40})
    assert refusals.exportable(copied / "support/dpo", copied).model.revision == "a" * 40


def test_another_folder_is_not_replaced(copied):
    out = copied.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(Refusal, match="is not empty and holds no export"):
        export(copied)
    assert (out / "mine.txt").read_text() == "precious"
    (out / "mine.txt").rename(out / refusals.RECORD)  # an export, as it seems
    assert export(copied) == out and files.read_json(out / refusals.RECORD)["run"] == "support/dpo"


def test_what_gguf_cannot_take_is_refused_with_the_way(chain):
    from transformers import AutoConfig

    own = saved_tokenizer(chain / "support/ppo/final")
    assert pre_tokenizer(own) == "gpt-2"
    llama = AutoConfig.from_pretrained(chain / "support/base/final")
    assert check_gguf(llama, own) == "gpt-2"
    wrong = [(AutoConfig.for_model("gpt2"), "its architecture is gpt2"), (AutoConfig.for_model("qwen3"), "is qwen3")]
    for values, words in (
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "positions are scaled"),
    ):
        config = AutoConfig.from_pretrained(chain / "support/base/final")
        for name, value in values.items():
            setattr(config, name, value)
        wrong.append((config, words))
    for config, words in wrong:
        with pytest.raises(Refusal, match=words) as told:
            check_gguf(config, own)
        assert "convert_hf_to_gguf.py" in str(told.value)
    from tokenizers import pre_tokenizers

    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(Refusal, match="none of the byte-level BPEs"):
        check_gguf(llama, own)


def test_pre_tokenizers_are_known_by_their_parts(chain, tmp_path):
    """Those that llama.cpp has a name for; transformers reads none of them back from the file (docs/surprises.md)."""
    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer

    from rlhf.export.gguf import PRE, write_gguf

    made = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False)}
    made["smollm"] = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), made["gpt-2"]])
    for name in ("llama-bpe", "qwen2"):
        cut = pre_tokenizers.Split(Regex(PRE[name][0]["pattern"]["Regex"]), "isolated")
        made[name] = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    assert set(made) == set(PRE)
    stage = refusals.exportable(chain / "support/dpo", chain)
    for name, cuts in made.items():
        own = saved_tokenizer(stage.path / "final")
        held = json.loads(own.backend_tokenizer.to_str())
        held["model"]["ignore_merges"] = name == "llama-bpe"
        own._tokenizer = type(own.backend_tokenizer).from_str(json.dumps(held))
        own.backend_tokenizer.pre_tokenizer = cuts
        assert pre_tokenizer(own) == name
    own = saved_tokenizer(stage.path / "final")
    own.backend_tokenizer.pre_tokenizer = made["smollm"]
    write_gguf(weights.whole(stage, own), own, "float32", tmp_path / "x.gguf", "x")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    assert pre_tokenizer(read) == "gpt-2", "transformers now reads it: recipes/reviews/fetch.py need not"


def test_a_chat_template_of_turns_is_put_into_go(chain):
    from rlhf.config import REPO

    own = saved_tokenizer(chain / "support/ppo/final")
    own.chat_template = (REPO / "conf/chat_template/chatml.jinja").read_text()
    written = go_template(own)
    assert written is not None and written.startswith(
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
    )
    assert written.endswith("<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n")
    own.chat_template = "{{ messages[0]['content'] | upper }}"
    assert go_template(own) is None
    assert "# the chat template" in modelfile("x.gguf", own, None)


def test_an_export_is_pushed_to_a_hub(copied, monkeypatch, tmp_path):
    hub, out = Hub(), export(copied)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        assert run.push(out, "me/mine") == f"{hub.address}/me/mine"
        assert hub.created[0]["name"] == "mine" and hub.created[0]["visibility"] == "private", hub.created
        held = {path.name: path.read_bytes() for path in out.iterdir()}
        assert {name: hub.files.get(name) for name in held} == held and len(held) > 6
        assert not any(b"hf_test" in content for content in held.values())
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        for name in ("me/mine", "no/such/name"):
            with pytest.raises(ConfigError, match=f"push={name}: .*\n  fix: hf auth login, then hf upload"):
                run.push(out, name)
    finally:
        hub.close()
