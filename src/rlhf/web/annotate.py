"""The page on which people rank replies, and the figures of what they said: its routes, each a call of the desk.

A judgement is answered when it is on the disk. What the page could not hear an answer to it sends again, which changes nothing.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf.errors import Refusal
from rlhf.feedback.schema import Item, Judgement
from rlhf.feedback.store import Store
from rlhf.people import agreement
from rlhf.people.desk import TAGS, Desk, named

PAGES = Path(__file__).parent / "pages"
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
FILES = {"/": "annotate.html", "/figures": "figures.html"} | {
    f"/{name}": name for name in ("annotate.js", "figures.js", "parts.js", "annotate.css", "icon.svg")
}
LARGEST = 2**53  # whole numbers that JavaScript knows


def routes(desk: Desk, rules: Callable[[], str], annotator: str = "") -> list[Route]:
    """`rules` are read at each item, since a team may change them meanwhile; `annotator` is the name that the page proposes."""

    async def start(_: Request) -> JSONResponse:
        return JSONResponse({"annotator": annotator, "tags": TAGS, "rules": rules()})

    async def next_item(request: Request) -> JSONResponse:
        name = _name(await _body(request))
        found = desk.next(name)
        return JSONResponse({"item": found and _item(desk, found, name), "rules": rules(), **_progress(desk, name)})

    async def judge(request: Request) -> JSONResponse:
        body = await _body(request)
        name = _name(body)
        made = desk.judge(
            name,
            _number(body, "item"),
            _texts(body, "shown"),
            [_whole("ranks", rank) for rank in _list(body, "ranks")],
            _text(body, "outcome"),
            None if body.get("better") is None else _text(body, "better"),
            {key: _texts(_object(body, "tags"), key) for key in _object(body, "tags")},
            _number(body, "milliseconds"),
        )
        return JSONResponse({"judgement": made, **_progress(desk, name)})

    async def undo(request: Request) -> JSONResponse:
        body = await _body(request)
        name = _name(body)
        item, said = desk.undo(name, _number(body, "item"))
        shown = _item(desk, item, name)
        return JSONResponse({"item": shown, "said": _said(desk, item, said), "rules": rules(), **_progress(desk, name)})

    async def here(request: Request) -> JSONResponse:
        """The page asks now and then; with an item while somebody is at work on it."""
        body = await _body(request)
        name = _name(body)
        if body.get("item") is not None:
            desk.hold(_number(body, "item"), name)
        return JSONResponse(_progress(desk, name))

    def figures(_: Request) -> JSONResponse:
        """In a thread of its own, with a connection of its own: intervals take a second where there are many judgements."""
        with Store(desk.store.path, write=False) as store:
            told = agreement.figures(store.judgements())
        for name in ("pairwise", "disagreement"):  # rows, since JSON has no pairs as keys
            told[name] = [[key, *value] for key, value in told[name].items()]
        return JSONResponse(_plain(told))

    return [
        *(Route(path, _file(name)) for path, name in FILES.items()),
        Route("/api/start", start),
        Route("/api/figures", figures),
        Route("/api/next", next_item, methods=["POST"]),
        Route("/api/judge", judge, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        Route("/api/here", here, methods=["POST"]),
    ]


def _file(name: str) -> Callable[[Request], Response]:
    content, kind = (PAGES / name).read_bytes(), KINDS[name.rpartition(".")[2]]
    return lambda _: Response(content, media_type=kind)


def _progress(desk: Desk, name: str) -> dict[str, Any]:
    return {"annotator": name, "progress": desk.progress(name)}


def _item(desk: Desk, item: Item, name: str) -> dict[str, Any]:
    """What the page gets: the turns and the replies, without the runs, facts and numbers that could tell where a reply comes from."""
    turns = [{"role": str(turn.get("role", "")), "content": _words(turn.get("content"))} for turn in item.messages]
    replies = [{"key": key, "text": reply.text} for key, reply in desk.shown(item, name).items()]
    return {"id": item.id, "turns": turns, "replies": replies}


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "" if content is None else str(content)


def _said(desk: Desk, item: Item, said: Judgement) -> dict[str, Any]:
    """What was taken back, in the names and the order of the page."""
    ranks = dict(zip(said.shown, said.ranks, strict=False))
    shown = desk.shown(item, said.annotator)
    tags = {key: said.tags.get(str(reply.id), []) for key, reply in shown.items()}
    return {"ranks": [ranks.get(reply.id) for reply in shown.values()], "better": said.better or "", "tags": tags}


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no dataclasses."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _name(body: dict[str, Any]) -> str:
    return named(_text(body, "annotator"))


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise Refusal(key, f"{ascii(value):.60}", "must be a text")
    return value


def _whole(key: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise Refusal(key, f"{ascii(value):.60}", "must be a whole number from 0")
    return value


def _number(body: dict[str, Any], key: str) -> int:
    return _whole(key, body.get(key))


def _list(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise Refusal(key, f"{ascii(value):.60}", "must be a list")
    return value


def _texts(body: dict[str, Any], key: str) -> list[str]:
    return [_text({key: value}, key) for value in _list(body, key)]


def _object(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise Refusal(key, f"{ascii(value):.60}", "must be an object")
    return value
