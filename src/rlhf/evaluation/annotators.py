"""Who knows the true preference of a dataset; real datasets have nobody."""

from collections.abc import Sequence
from types import ModuleType

from rlhf.errors import ConfigError, nearest
from rlhf.evaluation.samples import Sample

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


def with_gold(samples: Sequence[Sample], name: str | None) -> list[Sample]:
    """The samples with `gold` and `known` where they have facts and the dataset somebody who knows."""
    who = annotator(name)
    if who is None:
        return list(samples)
    return [
        s | {"gold": who.score(facts, s["reply"]), "known": who.known(s["reply"])} if (facts := s.get("facts")) else s
        for s in samples
    ]
