"""OpenAI's protocol and a chat page in front of an engine, and what people say of its answers."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from openai.types import Model
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as Asked
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf.errors import nearest
from rlhf.feedback.schema import Reply
from rlhf.web.gate import application
from rlhf.web.kept import Feedback, Given, Kept
from rlhf.web.protocol import (
    Head,
    Piece,
    Request,
    Sampling,
    Talk,
    Wrong,
    completion,
    delta,
    event,
    failed,
    read,
    usage,
)

PAGES = Path(__file__).parent / "pages"
BLIND = "compared"  # what the page is told in the place of the runs that it compares


class Engine(Protocol):
    async def open(self, run: str, messages: list[dict[str, Any]], sampling: Sampling) -> AsyncIterator[Piece]: ...

    def reply(self, run: str, text: str, sampling: Sampling) -> Reply: ...


@dataclass
class Choice:
    """A reply that is being given."""

    run: str
    sampling: Sampling
    pieces: AsyncIterator[Piece]
    text: list[str] = field(default_factory=list)
    last: Piece = Piece("")


class Chat:
    """The routes. `compare`: the page shows two replies in one answer of so many, 0 never: of two of the runs, or two of the only one."""

    def __init__(self, engine: Engine, runs: Sequence[str], kept: Kept, compare: int, temperature: float) -> None:
        self.engine, self.runs, self.kept = engine, list(runs), kept
        self.compare, self.temperature = compare, temperature
        self.started = Head.new("").created

    def app(self) -> Starlette:
        pages = {"/": "chat.html", "/chat.js": "chat.js", "/chat.css": "chat.css"}
        return application(
            [
                *(Route(path, _file(PAGES / name)) for path, name in pages.items()),
                Route("/favicon.ico", lambda _: Response(status_code=204)),
                Route("/chat", self.page, methods=["POST"]),
                Route("/v1/chat/completions", self.completions, methods=["POST"]),
                Route("/v1/feedback", self.feedback, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{run:path}", self.model),
            ]
        )

    async def models(self, _: Asked) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._model(run) for run in self.runs]})

    async def model(self, asked: Asked) -> JSONResponse:
        self._known(run := asked.path_params["run"])
        return JSONResponse(self._model(run))

    async def completions(self, asked: Asked) -> Response:
        request = read(Request, await asked.body())
        request.check()
        self._known(request.model)
        samplings = request.samplings(self.temperature, request.n or 1)
        head, turns = Head.new(request.model), request.turns()
        choices = await self._open(turns, [(request.model, sampling) for sampling in samplings])
        if request.stream:
            counted = request.stream_options is not None and request.stream_options.include_usage
            return _streamed(self._events(head, turns, choices, counted))
        return await _unless_gone(asked, self._whole(head, turns, choices))

    async def page(self, asked: Asked) -> Response:
        """An answer for the page: a stream with one choice, or with two that it shows side by side without their runs."""
        turns = read(Talk, await asked.body()).turns()
        twice = self.compare and random.randrange(self.compare) == 0
        runs = random.sample(self.runs if len(self.runs) > 1 else self.runs * 2, 2) if twice else self.runs[:1]
        samplings = Request.model_construct(messages=[], model="").samplings(self.temperature, len(runs))
        choices = await self._open(turns, list(zip(runs, samplings, strict=True)))
        return _streamed(self._events(Head.new(BLIND if twice else runs[0]), turns, choices))

    async def feedback(self, asked: Asked) -> JSONResponse:
        said = read(Feedback, await asked.body())
        await run_in_threadpool(self.kept.say, said)
        return JSONResponse({"object": "feedback", "id": said.id})

    # -- an answer

    async def _open(self, turns: list[dict[str, Any]], wanted: Sequence[tuple[str, Sampling]]) -> list[Choice]:
        return [Choice(run, one, await self.engine.open(run, turns, one)) for run, one in wanted]

    async def _said(
        self, head: Head, turns: list[dict[str, Any]], choices: Sequence[Choice]
    ) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all choices as they come. The answer is remembered before its last piece is told."""
        missing = len(choices)
        async for index, piece in _merged([choice.pieces for choice in choices]):
            choices[index].text.append(piece.text)
            if piece.finish:
                choices[index].last, missing = piece, missing - 1
            if not missing:
                replies = [self.engine.reply(one.run, "".join(one.text).strip(), one.sampling) for one in choices]
                self.kept.remember(head.id, Given(turns, replies))
            yield index, piece

    async def _events(
        self, head: Head, turns: list[dict[str, Any]], choices: Sequence[Choice], counted: bool = False
    ) -> AsyncIterator[str]:
        for index in range(len(choices)):
            yield event(head, [delta(index, "", role="assistant")])
        try:
            async for index, piece in self._said(head, turns, choices):
                if piece.text:
                    yield event(head, [delta(index, piece.text)])
                if piece.finish:
                    yield event(head, [delta(index, None, piece.finish)])
            if counted:
                yield event(head, [], usage=usage([choice.last.tokens for choice in choices]))
            yield "data: [DONE]\n\n"
        except HTTPException as error:
            yield failed(error)

    async def _whole(self, head: Head, turns: list[dict[str, Any]], choices: Sequence[Choice]) -> JSONResponse:
        async for _ in self._said(head, turns, choices):
            pass
        said = [("".join(choice.text), choice.last.finish or "") for choice in choices]
        return JSONResponse(completion(head, said, usage([choice.last.tokens for choice in choices])))

    def _known(self, run: str) -> None:
        if run not in self.runs:
            why = f"The model {run!r:.80} does not exist{nearest(run, self.runs)}; there are {', '.join(self.runs)}"
            raise Wrong(why, "model", "model_not_found", 404)

    def _model(self, run: str) -> dict[str, Any]:
        return Model(id=run, created=self.started, object="model", owned_by="rlhf").model_dump()


async def _merged(streams: Sequence[AsyncIterator[Piece]]) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of several streams with the number of theirs, as they come, until all have ended or one fails."""
    found = asyncio.Queue[tuple[int, Piece | Exception]]()

    async def listen(index: int, stream: AsyncIterator[Piece]) -> None:
        try:
            async for piece in stream:
                found.put_nowait((index, piece))
        except Exception as error:
            found.put_nowait((index, error))

    tasks = [asyncio.create_task(listen(index, stream)) for index, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            index, piece = await found.get()
            if isinstance(piece, Exception):
                raise piece
            left -= piece.finish is not None
            yield index, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _streamed(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream")


async def _unless_gone(asked: Asked, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer, or none where the client leaves before it is there: the work is then cancelled."""

    async def left() -> None:
        while (await asked.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else Response(status_code=499)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _file(path: Path) -> Any:
    async def answer(_: Asked) -> FileResponse:
        return FileResponse(path)

    return answer
