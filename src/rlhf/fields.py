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
    unknown, owner = [key for key in settings if key not in known], f"{cls.__module__.split('.')[0]}.{cls.__name__}"
    problems = [f"{where}.{key} is not a field of {owner}{nearest(key, known)}" for key in unknown]
    values = {}
    for key, value in ((key, value) for key, value in settings.items() if key in known):
        try:
            values[key] = typed(hints[key], value)
        except ConfigError as error:
            problems.append(f"{where}.{key}={value!r} {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def typed(hint: Any, value: Any) -> Any:
    """`value` as the scalar of a hint such as `float | None`; for other hints as it is.

    Raises ConfigError that says what it is not: of that type, or one of the choices of a Literal.
    """
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        choices = [str(choice) for choice in typing.get_args(hint)]
        raise ConfigError(f"is not one of {', '.join(choices)}{nearest(value, choices)}")
    kind = _scalar(hint)
    if kind is None or value is None:
        return value
    schema = dataclasses.make_dataclass("Typed", [("value", kind, dataclasses.field(default=MISSING))])
    try:
        return OmegaConf.merge(OmegaConf.structured(schema), {"value": value}).value
    except OmegaConfBaseException as error:
        what = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
        raise ConfigError(f"is not {what}") from error


def _scalar(hint: Any) -> type | None:
    """The one scalar type of a hint such as `float | None`; None where there are several, or a container."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [kind for kind in members if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (int, float, bool, str) else None
