"""Who knows the true preference of a dataset; real datasets have nobody."""

from types import ModuleType

from rlhf.errors import ConfigError, nearest

KNOWN = ("support",)


def annotator(name: str | None) -> ModuleType | None:
    """The module with `score(facts, reply)`, `prefer(facts, a, b)` and `known(reply)`, or None."""
    if name is None:
        return None
    if name not in KNOWN:
        raise ConfigError(
            f"dataset.annotator={name} is not known{nearest(name, KNOWN)}\n  allowed: null, {', '.join(KNOWN)}"
        )
    from rlhf.support import annotator as support

    return {"support": support}[name]
