"""The chat templates of model families as they ship, against every shape of dialogue and every method: exact, or refused in words.

Most are the files that TRL keeps byte for byte from the models (`trl/chat_templates/README.md` names the checkpoints). Those that it
has not are written here after what their repositories publish (tokenizer_config.json; in `WRITTEN`). `pytest -s` prints the matrix.
"""

import re
from pathlib import Path

import pytest

from rlhf.data.contract import BadRow, Dialogue
from rlhf.data.tokens import Renderer
from rlhf.errors import Refusal

MISTRAL = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}"
    "{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}"
    "{%- elif m.role == 'assistant' -%}{{- m.content + eos_token -}}"
    "{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}{%- endfor -%}"
)
MISTRAL_TOOLS = (  # the system turn and the tools stand before the last user's words
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- set asked = turns | selectattr('role', 'equalto', 'user') | list -%}"
    "{{- bos_token -}}{%- for m in turns -%}{%- if m.role == 'user' -%}"
    "{%- if tools and m == asked[-1] -%}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
    "{%- if loop.last and system is defined -%}{{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' -}}"
    "{%- else -%}{{- '[INST] ' + m.content + '[/INST]' -}}{%- endif -%}"
    "{%- elif m.tool_calls is defined -%}{{- '[TOOL_CALLS] [' -}}{%- for call in m.tool_calls -%}"
    "{%- if not call.id is defined or call.id | length != 9 -%}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}{%- endif -%}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' -}}{{- ', ' if not loop.last else ']' + eos_token -}}"
    "{%- endfor -%}"
    "{%- elif m.role == 'assistant' -%}{{- ' ' + m.content | trim + eos_token -}}"
    "{%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS] {\"content\": ' + m.content + '}[/TOOL_RESULTS]' -}}"
    "{%- endif -%}{%- endfor -%}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ SYSTEM }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'"
SMOLLM3 = (  # thinking by default; its switches are taken out of the system turn
    "{%- set mode = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' -%}"
    "{%- set ns = namespace(custom='') -%}{%- if messages[0].role == 'system' -%}"
    "{%- if '/no_think' in messages[0].content -%}{%- set mode = '/no_think' -%}{%- endif -%}"
    "{%- set ns.custom = messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() -%}{%- endif -%}"
    "{{- '<|im_start|>system\n## Metadata\n\nReasoning Mode: ' + mode + '\n\n## Custom Instructions\n\n' + ns.custom -}}"
    "{%- if tools -%}{{- '\n\n### Tools\n\n' + tools | tojson -}}{%- endif -%}{{- '<|im_end|>\n' -}}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' -}}"
    "{{- ('<think>\n\n</think>\n' if mode == '/no_think' else '') + m.content.lstrip('\n') + '<|im_end|>\n' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{{- '<think>\n\n</think>\n' if mode == '/no_think' else '' -}}{%- endif -%}"
)
PHI4 = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
TULU3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}{{ '\n' if not loop.last else '' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
GRANITE3 = (
    "{%- for m in messages -%}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
FALCON3 = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
VICUNA = (  # no token ends a user's turn
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- 'USER: ' + m.content + ' ' -}}{%- elif m.role == 'assistant' -%}"
    "{{- 'ASSISTANT: ' + m.content + eos_token -}}{%- else -%}{{- m.content + '\n\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
WRITTEN = {
    "Mistral v0.1": (MISTRAL, "</s>"),
    "Mistral v0.3": (MISTRAL_TOOLS, "</s>"),
    "Zephyr": (ZEPHYR, "</s>"),
    "SmolLM2": (CHATML.replace("SYSTEM", SMOLLM2), "<|im_end|>"),
    "SmolLM3": (SMOLLM3, "<|im_end|>"),
    "Yi": (CHATML.replace("{{ SYSTEM }}", ""), "<|im_end|>"),
    "Phi-4": (PHI4, "<|im_end|>"),
    "Tulu 3": (TULU3, "<|end_of_text|>"),
    "OLMo 2": ("{{ bos_token }}" + TULU3, "<|endoftext|>"),
    "Granite 3": (GRANITE3, "<|end_of_text|>"),
    "Falcon 3": (FALCON3, "<|endoftext|>"),
    "Vicuna": (VICUNA, "</s>"),
}
SHIPPED = {
    "Qwen2.5": ("qwen2_5", "<|im_end|>"),
    "Qwen3": ("qwen3", "<|im_end|>"),
    "Qwen3 2507": ("qwen3_instruct_2507", "<|im_end|>"),
    "Llama 3": ("llama3", "<|eot_id|>"),
    "Llama 3.1": ("llama3_1", "<|eot_id|>"),
    "Llama 3.2": ("llama3_2", "<|eot_id|>"),
    "Gemma 2": ("gemma", "<end_of_turn>"),
    "Gemma 3": ("gemma3", "<end_of_turn>"),
    "Phi-3": ("phi3", "<|end|>"),
    "Phi-3.5": ("phi3_5", "<|end|>"),
    "Command R": ("cohere", "<|END_OF_TURN_TOKEN|>"),
    "Command R7B": ("cohere2", "<|END_OF_TURN_TOKEN|>"),
    "DeepSeek V3": ("deepseekv3", "<｜end▁of▁sentence｜>"),
    "DeepSeek R1 distilled": ("deepseek_r1_distill", "<｜end▁of▁sentence｜>"),
    "GLM 4.5": ("glm4moe", "<|endoftext|>"),
    "gpt-oss": ("gptoss", "<|return|>"),
    "LFM2": ("lfm2", "<|im_end|>"),
    "Gemma 4": ("gemma4", "<turn|>"),
    "Qwen3.5": ("qwen3_5_think", "<|im_end|>"),
    "Nemotron 3": ("nemotron_3_nano", "<|im_end|>"),
}
SPECIAL = re.compile(
    r"<\|[A-Za-z_]+\|>|<｜[^｜<]+｜>|<(?:start|end)_of_(?:turn|image|utterance)>|\[/?(?:INST|[A-Z]+_[A-Z]+)\]"
    r"|<\|(?:turn|channel|tool\w*)>|<(?:turn|channel|tool\w*)\|>|<\|\"\|>|\[gMASK\]|<sop>"
)
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # tokens of their own, and not special, as in Qwen3

TOOL = {
    "type": "function",
    "function": {
        "name": "find_train",
        "description": "Looks up a train",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "find_train", "arguments": {"place": "Köln Süd"}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


ONE = [turn("user", "Is it late?"), turn("assistant", "No, it is not.")]
TWO = [*ONE, turn("user", "When is the last train back?"), turn("assistant", "At 23:40,\n\nfrom platform 7.")]
CASES = {
    "1 turn": Dialogue(ONE),
    "3 turns": Dialogue([*TWO, turn("user", "Thanks"), turn("assistant", "é 漢字 🙂 good night")]),
    "system": Dialogue([turn("system", "Be brief and polite."), *TWO]),
    "tools": Dialogue(
        [
            turn("user", "Which train goes south?"),
            turn("assistant", "", tool_calls=[CALL]),
            turn("tool", "RE 7 at nine", name="find_train", tool_call_id="abcdefghi"),
            turn("assistant", "The RE 7 does."),
        ],
        tools=[TOOL],
    ),
    "reasoning": Dialogue(
        [*ONE, turn("user", "7 or 8?"), turn("assistant", "Seven.", reasoning_content="8 - 1 is it")]
    ),
    "assistant first": Dialogue([turn("assistant", "Welcome aboard!"), *ONE]),
    "empty system": Dialogue([turn("system", ""), *TWO]),
}
METHODS = ("sft", "reward", "dpo", "ppo")


def templates():
    import trl

    shipped = Path(trl.__file__).parent / "chat_templates"
    found = {name: ((shipped / f"{file}.jinja").read_text(), eos) for name, (file, eos) in SHIPPED.items()}
    return {**found, **WRITTEN}


@pytest.fixture(scope="module")
def core():
    """Bytes, a few merges, and the special tokens of all families."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = {"<pad>", "<s>", "</s>", *(eos for _, eos in templates().values())}
    special |= {token for text, _ in templates().values() for token in SPECIAL.findall(text)} - set(ADDED)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=sorted(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["is it late? the last train back\n\nassistant\nuser\n"] * 3, trainer)
    made.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return made


def tokenizer_of(core, template, eos):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token="<pad>", chat_template=template
    )


def said(message):
    """The words of an assistant turn, in the order in which a template may write them."""
    call = [word for c in message.get("tool_calls", ()) for word in (c["function"]["name"], "place", "Köln Süd")]
    return [part for part in [message.get("reasoning_content"), message["content"], *call] if part]


def runs(ids, mask):
    """The stretches of ids that are learned."""
    found, former = [], 0
    for token, bit in zip(ids, mask, strict=True):
        if bit and not former:
            found.append([])
        if bit:
            found[-1].append(token)
        former = bit
    return found


def is_exact(tokenizer, dialogue, ids, mask, replies):
    """Each stretch that is learned is one reply's words and its end, with nothing of anybody else's."""
    learned = [tokenizer.decode(run) for run in runs(ids, mask)]
    assert len(learned) == len(replies), (learned, replies)
    others = [m["content"] for m in dialogue.messages if m["role"] != "assistant" and m["content"]]
    for text, message in zip(learned, replies, strict=True):
        place = 0
        for words in said(message):
            place = text.find(words, place)
            assert place >= 0, (text, words)
        assert not any(words in text for words in others), (text, others)
        if not message.get("tool_calls") and "reasoning_content" not in message:
            bare = re.sub(r"(<think>)?\s*</think>", "", text)
            for token in tokenizer.all_special_tokens + ["<|channel|>", "<|message|>", "<|end|>", "<|END_RESPONSE|>"]:
                bare = bare.replace(token, "")
            assert bare.removeprefix("final").strip() == message["content"], text
    assert ids[-1] == tokenizer.eos_token_id and mask[-1] == 1


def outcome(tokenizer, dialogue, method):
    """`exact` after every check, or the words of the refusal."""
    try:
        render = Renderer(tokenizer, plain=False)
        messages, options = dialogue.messages, {"tools": dialogue.tools, "tokenize": False}
        asked = Dialogue(messages[:-1], dialogue.tools)
        if method == "sft":
            ids, mask = render.encode(dialogue)
            is_exact(tokenizer, dialogue, ids, mask, [m for m in messages if m["role"] == "assistant"])
        elif method == "ppo":
            prompt = render.prompt(asked)
            whole = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
            assert (
                tokenizer.decode(prompt) == whole and prompt == tokenizer(whole, add_special_tokens=False)["input_ids"]
            )
            ids, _ = render.encode(dialogue)
            assert ids[: len(prompt)] == prompt, "PPO's prompt is not what the reply was learned after"
        else:
            other = [{**messages[-1], "content": "Nobody knows."}]
            prompt, chosen, mask = render.reply(asked, messages[-1:])
            again, rejected, _ = render.reply(asked, other)
            assert prompt == again == render.prompt(asked) and chosen != rejected
            is_exact(tokenizer, dialogue, prompt + chosen, [0] * len(prompt) + mask, messages[-1:])
            text = tokenizer.apply_chat_template(messages, **options)
            assert text.startswith(tokenizer.decode(prompt + chosen[:-1]))
        return "exact"
    except (BadRow, Refusal) as refused:
        return str(refused).replace("\n", " ")


NO_TOOLS, NO_REASONING = "leaves out the tool", "leaves out the reasoning of turn 4"
PLAIN = {"tools": NO_TOOLS, "reasoning": NO_REASONING}
ALTERNATE = {"tools": "must alternate", "assistant first": "must alternate"}
OPENS = dict.fromkeys(CASES, "its prompts open a thinking block")
# the cells that are refused, with what is said of each; every other cell is exact
REFUSED: dict[str, dict[str, str]] = {
    "Qwen2.5": {"reasoning": NO_REASONING},
    "Qwen3 2507": {"reasoning": NO_REASONING},
    "Llama 3": PLAIN,
    "Llama 3.1": {"reasoning": NO_REASONING},
    "Llama 3.2": {"reasoning": NO_REASONING},
    "Gemma 2": PLAIN | ALTERNATE | dict.fromkeys(("system", "empty system"), "System role not supported"),
    "Gemma 3": PLAIN | ALTERNATE,
    "Phi-3": PLAIN,
    "Phi-3.5": PLAIN,
    "Command R": PLAIN | ALTERNATE,
    "Command R7B": PLAIN | ALTERNATE,
    "DeepSeek V3": OPENS,  # and no reply of theirs keeps its thoughts
    "DeepSeek R1 distilled": OPENS,
    "LFM2": PLAIN,
    "Gemma 4": {"reasoning": NO_REASONING},
    "Nemotron 3": {case: said for case, said in OPENS.items() if case != "reasoning"},
    "Mistral v0.1": PLAIN | dict.fromkeys(("tools", "system", "empty system", "assistant first"), "must alternate"),
    # a system turn stands only in prompts, before the last user's words
    "Mistral v0.3": {
        "reasoning": NO_REASONING,
        "system": "leaves out the words of turn 1",
        "assistant first": "leaves out the words of turn 1",
        "empty system": "renders earlier turns differently",
    },
    **dict.fromkeys(
        ("Zephyr", "SmolLM2", "SmolLM3", "Yi", "Phi-4", "Tulu 3", "OLMo 2", "Granite 3", "Falcon 3", "Vicuna"), PLAIN
    ),
}


def test_every_family_is_exact_or_refused_in_words(core):
    rows, reasons, wrong = [], {}, []
    for family, (template, eos) in templates().items():
        tokenizer = tokenizer_of(core, template, eos)
        cells = []
        for case, dialogue in CASES.items():
            found = {method: outcome(tokenizer, dialogue, method) for method in METHODS}
            refusal = REFUSED.get(family, {}).get(case)
            marks = ""
            for method, text in found.items():
                # without the words after it, one reason is one letter
                reason = re.split(r" before turn|: take|: turn \d+ follows", text)[0] if text != "exact" else ""
                marks += chr(97 + reasons.setdefault(reason, len(reasons))) if reason else "✓"
                if (text == "exact") if refusal else (text != "exact"):
                    wrong.append((family, case, method, text))
                if refusal and refusal not in text and "leaves out the tool" not in text:
                    wrong.append((family, case, method, text))
            cells.append(marks)
        rows.append(f"{family:22}" + "".join(f"{cell:16}" for cell in cells))
    print("\n" + " " * 22 + "".join(f"{case:16}" for case in CASES) + "\n" + "\n".join(rows))
    print(f"each cell: {', '.join(METHODS)}; ✓ exact, else the refusal:")
    print("\n".join(f"  {chr(97 + number)}: {text}" for text, number in reasons.items()))
    assert len(rows) >= 12 and not wrong, wrong
