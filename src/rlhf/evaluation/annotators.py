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


def judged(samples: Sequence[Sample], name: str | None) -> list[Sample]:
    """The samples with `gold` and `known` where they have facts and the dataset somebody who knows."""
    judge = annotator(name)
    if judge is None:
        return list(samples)
    return [
        s | {"gold": judge.score(s["facts"], s["reply"]), "known": judge.known(s["reply"])} if s.get("facts") else s
        for s in samples
    ]
