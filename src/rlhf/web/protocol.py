"""OpenAI's chat-completions protocol: what may be asked, how an answer and its pieces are written, what an error looks like.

The types of the `openai` package shape what is sent. A parameter that it knows and that would change the answer is refused unless it
says what happens anyway; one that only a hosted service needs is ignored.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from rlhf.errors import nearest

IGNORED = {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
IGNORED |= {"prompt_cache_options", "parallel_tool_calls"}
WITHOUT: dict[str, Sequence[Any]] = {  # what says that a thing which we do not have is not wanted
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "logit_bias": [{}],
    "logprobs": [False],
    "top_logprobs": [0],
    "response_format": [{"type": "text"}],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "modalities": [["text"]],
    "store": [False],
}
GREEDY = 1e-3  # a temperature below it
M = TypeVar("M", bound=BaseModel)


class Wrong(HTTPException):
    """A request that gets an error in OpenAI's shape; `param` is the parameter at fault, `code` a word that programs know."""

    def __init__(self, why: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(status, why)
        self.more = {"param": param, "code": code}


class Piece(NamedTuple):
    """A piece of a reply; the last one says why it ends, and the tokens of prompt and reply where the engine tells them."""

    text: str
    finish: str | None = None
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True)
class Sampling:
    """How one reply is drawn; without a `limit` the engine has its own."""

    temperature: float
    top_p: float
    limit: int | None
    stop: tuple[str, ...]
    seed: int

    def told(self, **more: Any) -> dict[str, Any]:
        """What the store keeps of it."""
        found = {"temperature": self.temperature, "max_new_tokens": self.limit}
        return (
            found
            | ({"top_p": self.top_p} if self.top_p < 1 else {})
            | ({"stop": self.stop} if self.stop else {})
            | more
        )


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def turn(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Talk(BaseModel):
    """A conversation that is to be answered."""

    model_config = ConfigDict(strict=True)
    messages: list[Message] = Field(min_length=1)

    def turns(self) -> list[dict[str, str]]:
        return [message.turn() for message in self.messages]


class Request(Talk):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=8)
    stop: str | list[str] | None = Field(None, max_length=4)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - 8)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        """Raises Wrong for a parameter that is not known, or that asks for what we do not have."""
        known = set(CompletionCreateParamsBase.__annotations__)
        for name, value in (self.model_extra or {}).items():
            if name not in known:
                said = nearest(name, known | set(type(self).model_fields))
                raise Wrong(f"Unrecognized request argument supplied: {name}{said}", name, "unknown_parameter")
            if name not in IGNORED and value is not None and value not in WITHOUT.get(name, []):
                raise Wrong(f"{name} is not supported here: leave it out", name, "unsupported_parameter")
        if not all(self.stops()):
            raise Wrong("stop: an empty text would end every reply before it begins", "stop")

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def samplings(self, temperature: float, count: int) -> list[Sampling]:
        """One for each reply: the seeds follow each other from the one that was asked for."""
        heat = temperature if self.temperature is None else self.temperature
        seed = secrets.randbits(31) if self.seed is None else self.seed
        limit = self.max_completion_tokens or self.max_tokens
        found = (0.0 if heat < GREEDY else heat, 1.0 if self.top_p is None else self.top_p, limit, self.stops())
        return [Sampling(*found, seed + number) for number in range(count)]


def read(kind: type[M], body: bytes) -> M:
    """A body as `kind`; raises Wrong with the field that is at fault."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        why = f"{place}: {first['msg']}" if place else f"the body is not what is asked for: {first['msg']}"
        raise Wrong(why, str(first["loc"][0]) if first["loc"] else None) from error


class Head(NamedTuple):
    """What every piece of an answer repeats."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, model: str) -> "Head":
        return cls(f"chatcmpl-{secrets.token_hex(16)}", int(time.time()), model)


def event(head: Head, choices: Sequence[Mapping[str, Any]], **more: Any) -> str:
    """A piece of a streamed answer as a server-sent event."""
    fields = head._asdict() | {"object": "chat.completion.chunk", "choices": choices} | more
    return _event(ChatCompletionChunk.model_validate(fields).model_dump(mode="json", exclude_unset=True))


def delta(index: int, text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    said = {} if text is None else {"content": text}
    return {"index": index, "delta": said | more, "logprobs": None, "finish_reason": finish}


def failed(error: HTTPException) -> str:
    """An error in the middle of a stream, which clients raise."""
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return _event({"error": {"message": error.detail, "type": kind, **getattr(error, "more", {})}})


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def completion(head: Head, said: Sequence[tuple[str, str]], usage: CompletionUsage | None) -> dict[str, Any]:
    """A whole answer: text and reason of each choice."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish,
        }
        for index, (text, finish) in enumerate(said)
    ]
    fields = head._asdict() | {"object": "chat.completion", "choices": choices, "usage": usage}
    return ChatCompletion.model_validate(fields).model_dump(mode="json", exclude_unset=True)


def usage(tokens: Sequence[tuple[int, int] | None]) -> CompletionUsage | None:
    """Prompt and reply tokens of all choices of an answer, which have one prompt; None where an engine does not tell."""
    known = [one for one in tokens if one is not None]
    if len(known) < len(tokens):
        return None
    prompt, reply = known[0][0], sum(one[1] for one in known)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=reply, total_tokens=prompt + reply)
