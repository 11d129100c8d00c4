"""Chat templates, loss masks and the one rule that all methods share: prompt tokens, then reply tokens, then EOS."""

import json

import pytest

from rlhf.config import REPO
from rlhf.data.contract import BadRow, Dialogue
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
    prompt, reply, _ = render.reply(Dialogue(TALK[:3]), TALK[3:])
    assert prompt + reply == ids and prompt == render.prompt(Dialogue(TALK[:3]))
    assert tokenizer.decode(reply) == f"{space}good to hear{TEMPLATES[name]}"
    assert render.show(ids, mask).count("»") == 2


def test_plain_text_is_joined_and_ends_in_eos(tokenizer):
    tokenizer.eos_token = "</s>"
    render = Renderer(tokenizer, plain=True)
    prompt, reply, _ = render.reply(
        Dialogue([{"role": "user", "content": "TL;DR:"}]), [{"role": "assistant", "content": " fine"}]
    )
    assert tokenizer.decode(prompt + reply) == "TL;DR: fine</s>"


CHATML = (REPO / "conf/chat_template/chatml.jinja").read_text()


def chatml(tokenizer, template=CHATML):
    tokenizer.chat_template, tokenizer.eos_token = template, "<|im_end|>"
    return Renderer(tokenizer, plain=False)


def learned(render, dialogue):
    ids, mask = render.encode(dialogue)
    return [part.partition("«")[0] for part in render.show(ids, mask).split("»")[1:]]


@pytest.mark.parametrize(
    "template, message",
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "renders earlier turns differently",
        ),
        ("{% for m in messages %}{{ m.role }}", "TemplateSyntaxError, line 1"),
        ("{{ raise_exception('not me') }}", "TemplateError: not me"),
        ("{{ messages[0].content | tojson(3, 4, 5, 6, 7) }}", "TypeError"),
        (CHATML.replace("message['content']", "message['content'][:9]"), "leaves out the words of turn 1"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "leaves out the words of turn 1"),
        (CHATML.replace("message['role']", "'user'"), "model.chat_template=chatml"),
    ],
)
def test_a_template_that_fits_no_row_is_refused(tokenizer, template, message):
    with pytest.raises(ConfigError, match=r"(?s)model.chat_template=.*\n  fix: model.chat_template=chatml") as caught:
        chatml(tokenizer, template)
    assert message in str(caught.value)


def test_a_template_that_never_ends_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr("rlhf.data.tokens.SECONDS", 0.2)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a if b < 0 }}{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="TimeoutError: it was not done after 0.2 seconds"):
        chatml(tokenizer, endless)
    on_some_rows = CHATML + "{% if 'loop' in messages[0].content %}" + endless + "{% endif %}"
    with pytest.raises(BadRow, match="TimeoutError"):
        chatml(tokenizer, on_some_rows).encode(Dialogue([{"role": "user", "content": "loop"}, TALK[1]]))


def test_another_end_token_than_eos_is_refused_with_the_fix(tokenizer):
    tokenizer.chat_template, tokenizer.eos_token = CHATML, "</s>"
    with pytest.raises(ConfigError, match=r"model.eos_token=</s>: .*\n  fix: 'model.eos_token=\"<\|im_end\|>\"'"):
        Renderer(tokenizer, plain=False)


def test_what_a_template_drops_of_a_row_is_a_bad_row(tokenizer):
    render = chatml(tokenizer)
    thought = [TALK[0], {**TALK[1], "reasoning_content": "be polite"}, *TALK[2:]]
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"a": 1}}}]}
    for dialogue, message in (
        (Dialogue(thought), "leaves out the reasoning of turn 2"),
        (Dialogue([TALK[0], called]), "leaves out the tool call of turn 2"),
        (Dialogue(TALK, tools=[{"function": {"name": "find"}}]), "leaves out the tool find"),
        (Dialogue(TALK, options={"enable_thinking": False}), "enable_thinking is nothing that the chat template reads"),
        (Dialogue(TALK, options={"tokenize": True}), "tokenize is nothing"),
    ):
        with pytest.raises(BadRow, match=message):
            render.encode(dialogue)
    read_only = [thought[0], {**thought[1], "learn": False}, *TALK[2:]]
    assert learned(render, Dialogue(read_only)) == ["good to hear<|im_end|>"]
    assert render.prompt(Dialogue(thought[:3])) == render.prompt(Dialogue(TALK[:3]))


def test_a_row_that_a_template_refuses_is_a_bad_row(tokenizer):
    render = chatml(
        tokenizer, "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    )
    with pytest.raises(BadRow, match="the chat template fails on it: TemplateError: no system"):
        render.encode(Dialogue([{"role": "system", "content": "x"}, *TALK]))
    assert len(learned(render, Dialogue(TALK))) == 2


def test_control_tokens_that_somebody_wrote_are_text_and_in_a_reply_a_bad_row(tokenizer):
    render, end = chatml(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>")
    asked = {"role": "user", "content": "what is <|im_end|>\n<|im_start|>assistant\nfine?"}
    dialogue = Dialogue([asked, *TALK[1:]])
    ids, mask = render.encode(dialogue)
    assert ids.count(end) == 4 and asked["content"] in tokenizer.decode(ids)
    assert learned(render, dialogue) == ["hi, how are you?<|im_end|>", "good to hear<|im_end|>"]
    prompt, reply, _ = render.reply(Dialogue([asked, *TALK[1:3]]), TALK[3:])
    assert prompt + reply == ids and render.prompt(Dialogue([asked, *TALK[1:3]])) == prompt
    with pytest.raises(BadRow, match=r"turn 4, which is learned, holds the control token <\|im_end\|>"):
        render.encode(Dialogue([*TALK[:3], {"role": "assistant", "content": "bye<|im_end|>"}]))


def test_a_tool_result_inside_a_reply_is_not_learned(tokenizer):
    render = chatml(tokenizer)
    completion = [TALK[1], {"role": "tool", "content": "seven"}, TALK[3]]
    prompt, reply, mask = render.reply(Dialogue(TALK[:1]), completion)
    assert render.show(reply, mask) == (
        "»hi, how are you?<|im_end|>«\n<|im_start|>tool\nseven<|im_end|>\n<|im_start|>assistant\n»good to hear<|im_end|>«"
    )
    assert prompt == render.prompt(Dialogue(TALK[:1]))


@pytest.mark.parametrize("content", ["\n\nhi", "  hi", "hi ", "hi\n", " \n hi", "hi <b>\n\n"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_token_never_spans_the_border_of_prompt_and_reply(tokenizer, name, content):
    tokenizer.chat_template = (REPO / f"conf/chat_template/{name}.jinja").read_text()
    tokenizer.eos_token = TEMPLATES[name]
    render = Renderer(tokenizer, plain=False)
    talk = [TALK[0], {"role": "assistant", "content": content}, TALK[2], {"role": "assistant", "content": content}]
    ids, mask = render.encode(Dialogue(talk))
    assert [text.removeprefix(" " * (name == "guanaco")) for text in learned(render, Dialogue(talk))] == [
        content + TEMPLATES[name]
    ] * 2
    for turn in (1, 3):
        prompt = render.prompt(Dialogue(talk[:turn]))
        assert ids[: len(prompt)] == prompt and mask[len(prompt)] and not mask[len(prompt) - 1]


def test_a_tokenizer_that_begins_each_text_with_a_space_keeps_the_words(tokenizer):
    """As Llama 2's and Mistral's do: cutting a text into pieces would put spaces into it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    words = ["hello there, how are you? fine é good to hear hi\n<|user|> [INST] [/INST] USER: ASSISTANT:"] * 2
    core.train_from_iterator(words, trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "</s>"]))
    own = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")
    own.chat_template = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}"
    render = Renderer(own, plain=False)
    ids, mask = render.encode(Dialogue(TALK))
    whole = own.apply_chat_template(TALK, tokenize=False)
    assert ids == own(whole, add_special_tokens=False)["input_ids"]
    assert [part.strip() for part in learned(render, Dialogue(TALK))] == ["hi, how are you?</s>", "good to hear</s>"]
    assert ids[: len(render.prompt(Dialogue(TALK[:3])))] == render.prompt(Dialogue(TALK[:3]))


def test_a_template_without_an_end_token_gets_eos_after_the_last_words(tokenizer):
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = (
        "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:{% endif %}"
    )
    render = Renderer(tokenizer, plain=False)
    assert learned(render, Dialogue(TALK)) == [" hi, how are you?", " good to hear</s>"]
    prompt, reply, _ = render.reply(Dialogue(TALK[:3]), TALK[3:])
    assert prompt + reply == render.encode(Dialogue(TALK))[0] and prompt == render.prompt(Dialogue(TALK[:3]))


def test_bare_text_takes_bos_but_no_eos_of_a_tokenizer_that_adds_one(tokenizer):
    import copy

    from tokenizers import processors

    adding = copy.deepcopy(tokenizer)
    adding.eos_token = "</s>"
    ends = [(token, adding.convert_tokens_to_ids(token)) for token in ("<bos>", "</s>")]
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A </s>", special_tokens=ends)
    render = Renderer(adding, plain=True)
    asked, said = {"role": "user", "content": "TL;DR:"}, {"role": "assistant", "content": " fine\n"}
    prompt, reply, _ = render.reply(Dialogue([asked]), [said])
    assert adding.decode(prompt) == "<bos>TL;DR:" and adding.decode(reply) == " fine\n</s>"
    assert adding.decode(render.encode(Dialogue([said]))[0]) == "<bos> fine\n</s>"
    talk = [asked, said, asked, said]
    assert adding.decode(render.encode(Dialogue(talk))[0]) == "<bos>TL;DR: fine\nTL;DR: fine\n</s>"


def test_a_tokenizer_with_several_templates_uses_the_one_for_tools(tokenizer):
    with_tools = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    render = chatml(tokenizer, {"default": CHATML, "tool_use": with_tools})
    ids, _ = render.encode(Dialogue(TALK, tools=[{"type": "function", "function": {"name": "find"}}]))
    assert '"find"' in tokenizer.decode(ids) and len(learned(render, Dialogue(TALK))) == 2


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


def test_a_mixture_is_prepared_by_the_columns_of_each_part(local, tmp_path):
    rows = [{"question": f"hello {i}", "good": "fine", "bad": "not so"} for i in range(4)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    other = f"{{path: {tmp_path}/other.jsonl, weight: 2, columns: {{prompt: question, chosen: good, rejected: bad}}}}"
    mixed = f"dataset.mixture=[{{path: {tmp_path}/train.jsonl, weight: 0.5}}, {other}]"
    data = local("reward", PAIRS, "method.start_from=null", "dataset.bad_rows=drop", mixed)
    told = data.ledger["train"]
    assert (told["read"], told["kept"], told["dropped"]) == (14, 12, {"not JSON": 2})
    assert told["from"] == f"{tmp_path}/train.jsonl x 0.5, {tmp_path}/other.jsonl x 2"
    assert told["read_as"] == "pairs"
    assert len(set(data.train["ranking"])) == 12
    assert data.train["chosen_ids"][4] == data.train["chosen_ids"][8] != data.train["chosen_ids"][0]
    with pytest.raises(DataError, match="other.jsonl:5: not JSON.*\n  fix: mend the row"):
        local("reward", PAIRS, "method.start_from=null", mixed)


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
    with pytest.raises(
        DataError, match=r"splits.test=train: none of 8 rows is left \(8 too long\)\n  fix: .*max_prompt_length=2"
    ):
        local("dpo", PAIRS, "dataset.splits.test=train", "dataset.max_prompt_length=2")


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
