"""The chat templates of model families as they ship, against every shape of dialogue and every method: exact, or refused in words.

`pytest -s` prints the matrix.
"""

import re

from rlhf.data.contract import BadRow, Dialogue
from rlhf.data.tokens import Renderer
from rlhf.errors import Refusal
from tests.data.templates import templates, tokenizer_of

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
METHODS = ("sft", "reward", "dpo", "kto", "ppo")


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


def test_every_family_is_exact_or_refused_in_words():
    rows, reasons, wrong = [], {}, []
    for family, (template, eos) in templates().items():
        tokenizer = tokenizer_of(template, eos)
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
