"""Between bash and Hydra's grammar: a setting written so that both read the very value, and words as people type them."""

import math
import os
import re
import shlex
import types
import typing
from collections.abc import Callable
from typing import Any

PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[A-Za-z0-9_/.+@%:\-]*")  # read as text by Hydra without quotes
RESERVED = re.compile(r"(?i:null|true|false|nan|inf)")  # unless it is one of these
FREE = ("dataset.system",)  # a text that nobody sweeps over: a comma in it is a comma
SETTING = re.compile(r"(\+{0,2})([^\s=+~-][^=]*)=(.*)", re.S)


def setting(key: str, value: Any) -> str:
    """`key=value` as one word of bash that Hydra reads as this value: `'dataset.splits.eval="train[-5%:]"'`.

    `value` is null, a number, a text, or lists and mappings of those. An interpolation in a text stays one.
    """
    return shlex.quote(f"{key}={element(value)}")


def element(value: Any) -> str:
    """A value in Hydra's grammar. Raises ValueError for a mapping's key that the grammar can't write."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value) if not isinstance(value, float) or math.isfinite(value) else f"{value}".replace("+", "")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {element(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(element, value)) + "]"
    text = str(value)
    return text if PLAIN.fullmatch(text) and not RESERVED.fullmatch(text) else _quoted(text)


def _key(key: Any) -> str:
    """The grammar has no quotes for keys, but a backslash before what separates."""
    text = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key))
    if _parsed(f"x={{{text}: 0}}") != {str(key): 0}:
        raise ValueError(f"{key!r} can't be a key on the command line")
    return text


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()


def readable(word: str, hint: Callable[[str], Any], sweep: bool = False) -> str:
    """A word of the command line as Hydra can read it: what its grammar refuses, or takes for a number, is taken literally
    where the setting is a text (`dataset.path=/data/pairs (1).jsonl`, `dataset.splits.train=train[:90%]`).

    `hint` knows the type of a key, None where there is no such key. A word that Hydra reads stays as it is.
    """
    found = SETTING.fullmatch(word)
    kind = found and hint(found[2])
    if not found or kind is None:
        return word
    head, value = f"{found[1]}{found[2]}=", found[3].strip()
    parsed = _parsed(word)
    if parsed is not REFUSED:
        number = isinstance(parsed, int | float) and kind is not Any
        one = not sweep and _sweeps(parsed) and (found[2] in FREE or os.path.exists(home(value)))
        return head + _quoted(value) if holds_text(kind) and (number or one) else word
    if value[:1] in "[{":
        inside = head + "".join(map(_piece, re.split(SEPARATORS, value)))
        return word if _parsed(inside) is REFUSED else inside
    if not holds_text(kind):
        return word
    if sweep and "," in value:
        return head + ",".join(map(_piece, value.split(",")))
    return head + _quoted(value)


SEPARATORS = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[\[\]{},]|:\s)""")
REFUSED = object()


def _piece(text: str) -> str:
    refused = text.strip() and not SEPARATORS.fullmatch(text) and _parsed(f"x={text}") is REFUSED
    return _quoted(text.strip()) if refused else text


def _parsed(word: str) -> Any:
    """What Hydra reads in `key=value`; REFUSED where its grammar has no place for it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word).value()
    except (HydraException, RecursionError):
        return REFUSED


def holds_text(hint: Any) -> bool:
    """Whether a setting of this type may be a text."""
    return hint is Any or str in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))


def _sweeps(value: Any) -> bool:
    from hydra.core.override_parser.types import Sweep

    return isinstance(value, Sweep)


def several(word: str) -> bool:
    """Whether a word gives a setting several values, which only a sweep can take."""
    return _sweeps(_parsed(word))


def home(path: str) -> str:
    """`~` and `~name` at the start of a path are home folders; bash expands them only at the start of a word."""
    kind, colon, rest = path.partition(":")
    return f"{kind}:{os.path.expanduser(rest)}" if colon and rest.startswith("~") else os.path.expanduser(path)
