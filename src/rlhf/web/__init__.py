"""Pages and protocols on one address of this machine: who is let in, and what is served."""

from importlib.util import find_spec

from rlhf.errors import Refusal

NEEDED = ("starlette", "uvicorn", "openai")


def check_installed() -> None:
    """Raises a Refusal where this Python lacks the packages of requirements-web.txt, which are an extra."""
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise Refusal("web", ", ".join(lacking), "is not installed, and pages need it", fix="make web")
