"""A server behind the gate of our pages that answers how many bytes it got; tests/web/test_gate.py starts it."""

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from rlhf import door
from rlhf.web import server
from rlhf.web.gate import application


@dataclass
class Arguments:
    store: str
    port: door.Count = door.Count(0)


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def main(own: Arguments) -> None:
    with server.alone(Path(own.store)):
        server.run(application([Route("/", echo, methods=["GET", "POST"])]), server.bound(own.port), "echo")


if __name__ == "__main__":
    door.enter(main, Arguments)
