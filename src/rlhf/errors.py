"""What can go wrong, as exit codes and as messages that name the key or file, the value, what is allowed and the fix."""

import difflib
import os
from collections.abc import Iterable
from typing import Any


class StageError(Exception):
    """A failure with an exit code and a message for the user; anything else that escapes is a bug (exit 1)."""

    code = 1


class ConfigError(StageError, ValueError):
    """The configuration cannot work: unknown key, wrong type, missing predecessor, impossible split.

    A ValueError too, which is what users of TRL's trainers expect of a constructor. Any other ValueError is a bug.
    """

    code = 2


class Refusal(ConfigError):
    """One setting that cannot work, in the one form that all of them have:

        key=value: why
          allowed: a, b
          fix: what can be pasted

    `allowed` are the choices, `fix` is a setting or a command; both may be left out. The parts stay readable, so that a
    caller who knows the setting by a longer name (`method.args.x` for a trainer's `x`) can say it: `under("method.args.")`.
    """

    def __init__(self, key: str, value: object, why: str, *, allowed: Iterable[object] = (), fix: str = "") -> None:
        self.key, self.value, self.why, self.allowed, self.fix = key, value, why, tuple(allowed), fix
        choices = f"\n  allowed: {', '.join(map(str, self.allowed))}" if self.allowed else ""
        super().__init__(f"{key}={value}: {why}{choices}" + (f"\n  fix: {fix}" if fix else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process may raise it: its arguments make it again."""
        return _again, (self.key, self.value, self.why, self.allowed, self.fix)

    def under(self, prefix: str) -> "Refusal":
        """The same refusal of the setting `prefix` + key, in its fix too."""
        fix = self.fix.replace(f"{self.key}=", f"{prefix}{self.key}=")
        return Refusal(prefix + self.key, self.value, self.why, allowed=self.allowed, fix=fix)


def _again(key: str, value: object, why: str, allowed: tuple[object, ...], fix: str) -> Refusal:
    return Refusal(key, value, why, allowed=allowed, fix=fix)


class DataError(StageError):
    """The data cannot be used: missing file or column, malformed row, nothing left after filtering."""

    code = 3


class GuardStop(StageError):
    """A guard stopped the run: a non-finite loss, a violated invariant, a reward being gamed."""

    code = 4


class ResourceError(StageError):
    """Memory or disk ran out."""

    code = 5


class Preempted(StageError):
    """The process was told to stop (SIGTERM), saved a checkpoint, and can be started again with the same command."""

    code = 75


class Elsewhere(StageError):
    """Another process of this run has failed, and says why; without words where it was heard what its exit code is.

    Where we started the processes ourselves, this one leaves with `unheard`, and the one that failed speaks for all.
    """

    unheard = 76

    def __init__(self, message: str, code: int = Preempted.code) -> None:
        super().__init__(message)
        self.code = self.unheard if os.environ.get("RLHF_STARTED") else code


def nearest(word: object, known: Iterable[str], count: int = 3, before: str = "") -> str:
    """`; did you mean a, b?` for the known words that contain this one or are close to it, each with `before` in front,
    or the empty string."""
    text, names = str(word), sorted(set(known), key=lambda name: (len(name), name))
    inside = [name for name in names if len(text) > 2 and text in name]
    near = [*inside, *difflib.get_close_matches(text, sorted(names), n=count, cutoff=0.5)]
    said = ", ".join(before + name for name in list(dict.fromkeys(near))[:count])
    return f"; did you mean {said}?" if said else ""


class NonFinite(GuardStop, FloatingPointError):
    """A reward, loss or gradient that is NaN or infinite; raised before the step, while the weights are good, and in an
    evaluation before its checkpoint is saved."""

    def __init__(self, metric: str, value: float, update: int) -> None:
        super().__init__(
            f"{metric} is {value} in update {update}; stopped before another optimizer step. "
            "The last checkpoint is untouched: resume from it with a lower learning_rate or a reward_clip"
        )
        self.metric, self.value, self.update = metric, value, update
