"""A mapping held against a dataclass: unknown keys, wrong types, the nearest names.

TRL's dataclasses can't be Hydra structured configs (unions of containers), and its own parser drops unknown keys silently, so
the keys are checked here against the installed version, before any weight is loaded.
"""

import dataclasses
import types
import typing
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf.errors import ConfigError, nearest


def checked(cls: type, settings: dict[str, Any], where: str) -> dict[str, Any]:
    """`settings` with the types of the fields of dataclass `cls`; all problems are reported at once."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    problems = [
        f"{where}.{key} is not a field of {cls.__module__.split('.')[0]}.{cls.__name__}{nearest(key, known)}"
        for key in settings
        if key not in known
    ]
    values = {}
    for key, value in settings.items():
        if key not in known:
            continue
        allowed = typing.get_args(hints[key]) if typing.get_origin(hints[key]) is typing.Literal else (value,)
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            problems.append(f"{where}.{key}={value!r} is not one of {choices}{nearest(value, map(str, allowed))}")
        kind = _scalar(hints[key])
        if kind is None or value is None:
            values[key] = value
            continue
        schema = dataclasses.make_dataclass(cls.__name__, [("value", kind, dataclasses.field(default=MISSING))])
        try:
            values[key] = OmegaConf.merge(OmegaConf.structured(schema), {"value": value}).value
        except OmegaConfBaseException:
            problems.append(f"{where}.{key}={value!r} is not {_article(kind)}")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def _scalar(hint: Any) -> type | None:
    """The one scalar type of a hint such as `float | None`; None where there are several, or a container."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [kind for kind in members if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (int, float, bool, str) else None


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
