"""Another server of the OpenAI protocol as the engine: requests go on to it, its pieces come back as they arrive."""

import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai

from rlhf.errors import Refusal, nearest
from rlhf.feedback.schema import Reply
from rlhf.web.protocol import Piece, Sampling, Wrong

KEY = "RLHF_ENGINE_KEY"  # of the environment: the key of that server, where it wants one
PATIENCE = 10.0  # seconds in which it has to say what it serves


class Remote:
    """Answers as the models of the server at `url`. A run stands for the model of that name, or for the only one that is there.

    What that server holds in memory is its own word: a reply is kept with the address, and without hashes.
    """

    def __init__(self, url: str, runs: Sequence[str], limit: int | None = None) -> None:
        """Raises a Refusal where no such server answers, or it does not serve a run."""
        options: dict[str, Any] = {"base_url": url, "api_key": os.environ.get(KEY) or "none", "max_retries": 0}
        self.url, self.limit, self.client = url, limit, openai.AsyncOpenAI(**options)
        try:
            with openai.OpenAI(**options, timeout=PATIENCE) as client:
                served = [model.id for model in client.models.list()]
        except openai.AuthenticationError as error:
            raise Refusal(
                "engine", url, f"does not take the key: {error.message}", fix=f"{KEY}=... before the command"
            ) from error
        except openai.APIStatusError as error:
            why = f"is no server of the OpenAI protocol: GET {url}/models says {error.status_code}"
            raise Refusal(
                "engine", url, why, fix="the address up to /v1, e.g. engine=http://127.0.0.1:8080/v1"
            ) from error
        except (openai.OpenAIError, ValueError, TypeError) as error:
            why = f"nothing answers there ({error.__cause__ or error})"
            raise Refusal("engine", url, why, fix="start that server first; or engine=embedded") from error
        self.models = {run: served[0] if len(served) == 1 else run for run in runs}
        for run, model in self.models.items():
            if model not in served:
                raise Refusal("run", run, f"{url} does not serve it{nearest(run, served)}", allowed=served)

    async def open(self, run: str, messages: list[dict[str, Any]], sampling: Sampling) -> AsyncIterator[Piece]:
        """The pieces of a reply, once the server has begun it; raises Wrong with what it says where it does not."""
        asked = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        asked |= {"stop": list(sampling.stop)} if sampling.stop else {}
        asked |= {"max_tokens": limit} if (limit := sampling.limit or self.limit) else {}
        options: Any = asked | {"model": self.models[run], "messages": messages}
        try:
            stream = await self.client.chat.completions.create(
                stream=True, stream_options={"include_usage": True}, **options
            )
        except openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            theirs = error.status_code in (400, 413, 422, 429)  # what who asks can do something about
            raise Wrong(
                f"{self.url}: {body.get('message', error.message)}"[:500],
                body.get("param"),
                body.get("code"),
                error.status_code if theirs else 502,
            ) from error
        except openai.OpenAIError as error:
            raise Wrong(f"{self.url} does not answer: {error.__cause__ or error}", status=502) from error
        return self._pieces(stream)

    async def _pieces(self, stream: Any) -> AsyncIterator[Piece]:
        finish, tokens = None, None
        async with stream:
            try:
                async for chunk in stream:
                    if chunk.usage:
                        tokens = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    for choice in chunk.choices:
                        finish = choice.finish_reason or finish
                        if choice.delta.content:
                            yield Piece(choice.delta.content)
            except Exception as error:  # of openai, or of the HTTP client below it
                raise Wrong(self._broke_off(str(error)), status=502) from error
        if finish is None:
            raise Wrong(self._broke_off("it said no reason"), status=502)
        yield Piece("", finish, tokens)

    def _broke_off(self, why: str) -> str:
        return f"{self.url} broke off in the middle of its reply: {why}"[:500]

    def reply(self, run: str, text: str, sampling: Sampling) -> Reply:
        """A reply as the store keeps it."""
        told = sampling.told(max_new_tokens=sampling.limit or self.limit, engine=self.url, model=self.models[run])
        return Reply(text, run, sampling=told, seed=sampling.seed)
