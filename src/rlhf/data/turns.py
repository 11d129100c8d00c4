"""One cell of a row as turns: OpenAI's messages, ShareGPT's, contents in parts, calls of tools, thoughts, turns not to be learned.

A turn that comes out is a dict with `role` (system, user, assistant, tool) and `content`, a text, and where they were given
`reasoning_content`, `tool_calls` (with arguments as an object), `name`, `tool_call_id` and `learn`: False. What changes the meaning of
a turn and can't be kept makes a bad row.
"""

import ast
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from rlhf.data.rows import BadRow

Messages = list[dict[str, Any]]

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "function_call"),
    "tool": ("tool", "observation", "function", "ipython", "tool_response", "function_response"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
WHO, WHAT = ("role", "from"), ("content", "value", "text")
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
WEIGHTS = ("weight", "loss_weight", "train", "training", "learn")
CALLS = ("tool_calls", "function_call")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
ELSEWHERE = (*MEDIA, "file", "files", "prefix", "mask", "loss_mask")
NO_WORDS = "rows of text alone; or dataset.bad_rows=drop, to leave out those that have more"


def is_turns(value: Any) -> bool:
    """Whether a cell is a list of turns, each of which says who speaks."""
    return isinstance(value, list) and bool(value) and all(is_turn(turn) for turn in value)


def is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in WHO)


def is_whole(value: Any) -> bool:
    """Whether turns hold the question too, and not only a reply to it."""
    return is_turns(value) and any(_role(turn) in ("user", "system") for turn in value)


def unfolded(value: Any) -> Any:
    """A list of turns that was written into a cell of a CSV file, as JSON or as Python shows it; any other value as it is.

    Raises BadRow for a cell that begins as one and can't be read.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", '{"', "{'")):
        return value
    read = None
    with contextlib.suppress(ValueError, RecursionError):
        read = json.loads(value)
    if read is None:
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            read = ast.literal_eval(value.strip())
    if read is None and any(f"{quote}{key}{quote}" in value[:40] for quote in "'\"" for key in WHO):
        raise BadRow("not messages", f"a cell holds turns that are neither JSON nor Python: {short(value)}")
    return read if is_turns(read) or is_turn(read) else value


def turns(value: Sequence[Any], column: str) -> Messages:
    """A list of turns in the one form that all have here."""
    if not all(isinstance(turn, dict) for turn in value):
        raise BadRow("not messages", f"{column} must be a text or a list of messages, found {short(value)}")
    return [_turn(turn, column) for turn in value]


def _turn(turn: dict[str, Any], column: str) -> dict[str, Any]:
    role, said = _role(turn), _first(turn, WHAT)
    if not isinstance(role, str):
        raise BadRow("not messages", f"{column}: a message needs a role and a content, both text, found {short(turn)}")
    for key in ELSEWHERE:
        if turn.get(key):
            raise BadRow(f"{key} of a turn", f"{column}: a turn's {key}={short(turn[key])} can't be used", fix=NO_WORDS)
    made: dict[str, Any] = {"role": role}
    calls = next((turn[key] for key in CALLS if turn.get(key)), None)
    if _first(turn, WHO) == "function_call":
        calls, said = said, ""
    if isinstance(said, list):
        said, parts = _joined(said, column)
        calls = parts.pop("tool_calls", calls)
        made |= parts
    if said is None and calls:
        said = ""
    if not isinstance(said, str):
        raise BadRow("not messages", f"{column}: a message needs a role and a content, both text, found {short(turn)}")
    made["content"] = unicode(said, column)
    if thought := _first(turn, THOUGHTS):
        made["reasoning_content"] = text(thought, f"{column}: the reasoning of a turn")
    if calls:
        made["tool_calls"] = [_call(call, column) for call in _calls(calls, column)]
    made |= {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key) is not None}
    if _weight(turn, role, column) is False:
        made["learn"] = False
    return made


def _role(turn: dict[str, Any]) -> Any:
    name = _first(turn, WHO)
    return ROLE_OF.get(name.strip().lower(), name) if isinstance(name, str) else name


def _first(turn: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _weight(turn: dict[str, Any], role: str, column: str) -> bool | None:
    """Whether a turn says that it is to be learned."""
    said = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
    for key, weight in said.items():
        if weight not in (0, 1) or weight != next(iter(said.values())):
            what = "is neither 0 nor 1" if weight not in (0, 1) else f"contradicts {next(iter(said))}"
            raise BadRow(
                "weight of a turn", f"{column}: {key}={short(weight)} of a turn {what}; a turn is learned or not"
            )
        if weight and role != "assistant":
            why = f"{key}={weight} on a {role} turn; only an assistant's is learned"
            raise BadRow("weight of a turn", f"{column}: {why}")
    return bool(next(iter(said.values()))) if said and role == "assistant" else None


def _joined(parts: list[Any], column: str) -> tuple[str, dict[str, Any]]:
    """The texts of a content in parts, and what other parts say."""
    said: list[str] = []
    beside: dict[str, Any] = {}
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        value = (
            next((part[key] for key in ("text", "value", kind) if key in part), None)
            if isinstance(part, dict)
            else part
        )
        if kind in ("text", "input_text", "output_text") and isinstance(value, str):
            said.append(value)
        elif kind in THOUGHTS and isinstance(value, str):
            beside["reasoning_content"] = beside.get("reasoning_content", "") + value
        elif kind == "tool_call" and value:
            beside.setdefault("tool_calls", []).append(loaded(value))
        else:
            raise BadRow("not text", f"{column}: the part {short(part)} of a content is no text", fix=NO_WORDS)
    return "".join(said), beside


def _calls(calls: Any, column: str) -> list[Any]:
    calls = loaded(calls)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not calls:
        raise BadRow("not a tool call", f"{column}: {short(calls)} is no call of a tool")
    return [loaded(call) for call in calls]


def _call(call: Any, column: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        arguments = loaded(function.get("arguments", function.get("parameters")) or {})
        if isinstance(arguments, dict):
            kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
            return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
    what = "a call needs a name and its arguments, an object or its JSON"
    raise BadRow("not a tool call", f"{column}: {what}, found {short(call)}")


def tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """The tools of a row as `apply_chat_template` takes them; None if there are none."""
    value = loaded(value)
    listed = [value] if isinstance(value, dict) else value
    if not listed:
        return None
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise BadRow("not tools", f"{column} must be a list of tools, or its JSON, found {short(value)}")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in map(loaded, listed)]


def loaded(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def text(value: Any, column: str) -> str:
    """A cell that must be a text with something in it."""
    if not isinstance(value, str):
        raise BadRow("not text", f"{column} must be text, found {type(value).__name__} {short(value)}")
    if not value.strip():
        raise BadRow("empty text", f"{column} is empty")
    return unicode(value, column)


def unicode(value: str, column: str) -> str:
    """The text, unless it holds half of a surrogate pair, which is no character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"{column} holds {value[error.start]!r}, half of a character"
        raise BadRow("not text", what) from error
    return value


def short(value: Any) -> str:
    """A value in at most 80 characters."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
