"""Who is let in: requests to this address, from its own pages or from no page, that hold the token, with a body that is not too large.

The token comes once as `?token=` of a page's address and is a cookie from then on (HttpOnly, SameSite=Strict), or as
`Authorization: Bearer`, which is where clients of the OpenAI protocol put their key. A Host that is not this machine's is refused, or
another site's name that resolves to 127.0.0.1 would be let in (DNS rebinding); an Origin that is not the page's own likewise.
"""

import secrets
from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf.errors import StageError

BODY = 1 << 20  # bytes of a request; a long conversation is a tenth of it
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'"
HEADERS = {
    "content-security-policy": f"{POLICY}; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Gate:
    """An ASGI application in front of another one. `hosts` are the names of this machine that may be called, with their port."""

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...], body: int = BODY) -> None:
        self.app, self.token, self.hosts, self.body = app, token, hosts, body
        self.cookie = f"rlhf-{hosts[0].rpartition(':')[2]}"  # cookies know no ports: two servers would share one

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        left = self.body

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        answer = self._refused(scope) or self._entered(scope) or self.app
        await answer(scope, limited, sending)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host.lower() not in self.hosts:
            return said(421, f"Host: {host!r:.80} is not this server; it is {self.hosts[0]}")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.hosts}:
            return said(403, f"Origin: {origin!r:.80}: another page may not ask here")
        if int(headers.get("content-length") or 0) > self.body:
            return _answer(self._too_large())
        return None

    def _entered(self, scope: Scope) -> JSONResponse | RedirectResponse | None:
        """None for who holds the token; who brings it in a page's address gets it as a cookie."""
        asked = HTTPConnection(scope)
        brought = asked.query_params.get("token", "")
        if brought and self._right(brought):
            answer = RedirectResponse(f"/{asked.url.path.lstrip('/')}", status_code=303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return answer
        bearer = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if self._right(asked.cookies.get(self.cookie, "")) or self._right(bearer):
            return None
        return said(
            401, "no token, or another server's; open the address that the command printed, or send it as the API key"
        )

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a request holds at most {self.body} bytes", {"connection": "close"})

    def _right(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self.token.encode())


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """An application whose errors are `said`: what a request may not, and what the store or the configuration refuse (400)."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        return said(400, str(error))

    async def told(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _answer(error)

    return Starlette(routes=routes, exception_handlers={HTTPException: told, StageError: refused})


def _answer(error: HTTPException) -> JSONResponse:
    return said(error.status_code, error.detail, error.headers, **getattr(error, "more", {}))


def said(status: int, why: str, headers: Mapping[str, str] | None = None, **more: str | None) -> JSONResponse:
    """An error in the form of the OpenAI protocol, which our pages read too."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"message": why, "type": kind, "param": None, "code": None} | more}
    return JSONResponse(body, status_code=status, headers=headers)
