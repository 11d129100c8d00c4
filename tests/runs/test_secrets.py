"""What a run's files say of the command and the configuration: no secret, and nothing else struck out."""

import pytest

from rlhf.runs.provenance import provenance, redact, redacted

HUB, FORGE = "hf_" + "aB3" * 12, "ghp_" + "x1Y" * 12


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("+token=abc", "+token=***"),
        ("logging.args.api_key=abc", "logging.args.api_key=***"),
        ("logging.args={password: abc, project: p}", "logging.args={password: ***, project: p}"),
        ('hub_token="a b"', "hub_token=***"),
        ("https://me:pw@host/x", "https://***@host/x"),
        ("https://host/x?token=abc&q=1", "https://host/x?token=***&q=1"),
        (f"model.path={HUB}", "model.path=***"),
        (f"{FORGE} there", "*** there"),
        ("AKIA" + "A1B2" * 4, "***"),
        # no secrets
        ("model.path=x/hf_checkpoints/llama", "model.path=x/hf_checkpoints/llama"),
        ("model.eos_token=<|im_end|>", "model.eos_token=<|im_end|>"),
        ("model.pad_token=<pad>", "model.pad_token=<pad>"),
        ("dataset.prompt_tokens=[2,8]", "dataset.prompt_tokens=[2,8]"),
        ("dataset.path=/data/sk-learn/rows.jsonl", "dataset.path=/data/sk-learn/rows.jsonl"),
    ],
)
def test_secrets_go_and_the_rest_stays(text, kept):
    assert redact(text) == kept


def test_a_secret_is_found_however_deep_it_lies():
    given = {"args": [{"api_key": "abc", "eos_token": "</s>"}], "wandb": {"password": 7, "url": "http://a:b@c"}}
    kept = {"args": [{"api_key": "***", "eos_token": "</s>"}], "wandb": {"password": "***", "url": "http://***@c"}}
    assert redacted(given) == kept


def test_a_container_without_git_has_a_run_json(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["git"] == {"commit": "", "dirty": False}
