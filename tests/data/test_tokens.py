"""Chat templates, loss masks and the one rule that all methods share: prompt tokens, then reply tokens, then EOS."""

import json

import pytest

from rlhf.config import REPO
from rlhf.data.contract import Dialogue
from rlhf.data.prepare import prepare
from rlhf.data.tokens import Renderer
from rlhf.errors import ConfigError, DataError
from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that knows every template's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [
        "<pad>",
        "</s>",
        "<|end|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ]
    special += [
        "<|begin_of_text|>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        ["hello there, how are you? fine"],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")


TEMPLATES = {
    "chatml": "<|im_end|>",
    "zephyr": "</s>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "support": "<|end|>",
    "guanaco": "</s>",
    "tulu": "</s>",
}
TALK = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hi, how are you?"},
    {"role": "user", "content": "fine é"},
    {"role": "assistant", "content": "good to hear"},
]


def test_every_template_is_tried():
    assert set(TEMPLATES) == {file.stem for file in (REPO / "conf/chat_template").glob("*.jinja")}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_only_replies_and_their_eos_are_learned(tokenizer, name):
    tokenizer.chat_template = (REPO / f"conf/chat_template/{name}.jinja").read_text()
    tokenizer.eos_token = TEMPLATES[name]
    render = Renderer(tokenizer, plain=False)
    ids, mask = render.encode(Dialogue(TALK))
    learned = tokenizer.decode([i for i, bit in zip(ids, mask, strict=True) if bit])
    space = " " if name == "guanaco" else ""  # what follows `Assistant:` there
    assert learned == f"{space}hi, how are you?{TEMPLATES[name]}{space}good to hear{TEMPLATES[name]}"
    assert ids[-1] == tokenizer.eos_token_id and mask[-1] == 1
    prompt, reply = render.reply(Dialogue(TALK[:3]), TALK[3:])
    assert prompt + reply == ids and prompt == render.prompt(Dialogue(TALK[:3]))
    assert tokenizer.decode(reply) == f"{space}good to hear{TEMPLATES[name]}"
    assert render.show(ids, mask).count("»") == 2


def test_plain_text_is_joined_and_ends_in_eos(tokenizer):
    tokenizer.eos_token = "</s>"
    render = Renderer(tokenizer, plain=True)
    prompt, reply = render.reply(
        Dialogue([{"role": "user", "content": "TL;DR:"}]), [{"role": "assistant", "content": " fine"}]
    )
    assert tokenizer.decode(prompt + reply) == "TL;DR: fine</s>"


def test_a_template_that_rewrites_history_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="renders earlier turns differently"):
        Renderer(tokenizer, plain=False).encode(Dialogue(TALK))


def test_no_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="fix: model.chat_template=chatml"):
        Renderer(tokenizer, plain=False)


@pytest.fixture
def local(compose_stage, tmp_path, tokenizer):
    """A stage on local rows with a saved tokenizer: `local(method, rows, *overrides)`."""
    tokenizer.chat_template = (REPO / "conf/chat_template/zephyr.jinja").read_text()
    tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(str(tmp_path / "model"))

    def build(method, rows, *overrides):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = [
            f"method={method}",
            f"dataset.path={tmp_path}/train.jsonl",
            "dataset.splits.eval=null",
            "dataset.splits.test=null",
        ]
        stage = compose_stage(*settings, f"model.path={tmp_path}/model", "model.chat_template=null", *overrides)
        stage.dataset.columns = {name: name for name in rows[0]}
        made = load_tokenizer(stage)
        return prepare(stage, renderer(stage, made), prompt_renderer(stage, made))

    return build


PAIRS = [{"prompt": f"hello {i}", "chosen": "fine " * (4 * i + 1), "rejected": f"bad {i}"} for i in range(8)]


def test_reward_and_dpo_see_exactly_the_same_pairs(local):
    reward, dpo = (local(method, PAIRS, "dataset.max_length=24") for method in ("reward", "dpo"))
    assert reward.train[:] == dpo.train[:]
    assert reward.ledger["train"]["fingerprint"] == dpo.ledger["train"]["fingerprint"]
    assert reward.ledger["train"]["dropped"] == {"too long": 8 - len(reward.train)} and len(reward.train) < 8


def test_the_ledger_accounts_for_every_row(local):
    rows = [
        *PAIRS,
        {"prompt": "x", "chosen": "same", "rejected": "same"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
    ]
    ledger = local("dpo", rows, "dataset.bad_rows=drop", "dataset.max_length=24").ledger["train"]
    assert ledger["read"] == len(rows) == ledger["kept"] + sum(ledger["dropped"].values())
    assert ledger["dropped"]["chosen equals rejected"] == 1 and ledger["dropped"]["empty text"] == 1
    assert any(
        "train.jsonl:9" in example
        for example in local("dpo", rows, "dataset.bad_rows=drop").ledger["train"]["dropped_examples"]
    )


def test_truncation_is_counted_and_cannot_leave_nothing_to_learn(local):
    rows = [{"prompt": "hello " * n, "completion": "fine " * 5} for n in (1, 12, 60)]
    data = local("sft", rows, "dataset.max_length=40", "dataset.long_rows=truncate")
    assert data.ledger["train"]["truncated"] >= 1 and data.ledger["train"]["dropped"] == {"nothing left to learn": 1}
    assert all(any(label != -100 for label in row["labels"]) and len(row["labels"]) <= 40 for row in data.train)


def test_bad_rows_stop_with_file_and_line(local):
    with pytest.raises(DataError, match=r"train.jsonl:2: .* are the same reply") as caught:
        local("dpo", [PAIRS[0], {"prompt": "x", "chosen": "same", "rejected": "same"}])
    assert "fix:" in str(caught.value)


def test_nothing_left_is_an_error(local):
    with pytest.raises(DataError, match="none of 8 rows is left"):
        local("dpo", PAIRS, "dataset.max_length=3")


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.pad_token='</s>'", "model.pad_token=</s>: .* equals the EOS token .*\n  fix: '?model.pad_token="),
        (
            "model.eos_token='<|im_ned|>'",
            r"model.eos_token=<\|im_ned\|>: not in the vocabulary of .*did you mean .*\n  fix: model.eos_token=null",
        ),
    ],
)
def test_special_tokens_are_checked(local, override, message):
    with pytest.raises(ConfigError, match=message):
        local("dpo", PAIRS, override)
