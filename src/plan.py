"""What a stage would do, how much memory it needs, and whether it fits, before anything is downloaded.

  python src/plan.py recipe=<recipe>/<stage> [group=option] [key=value]

Takes what train.py takes. Exit code 0: it fits; 5: it does not, and the settings to change are printed.
"""

import sys
from dataclasses import dataclass

from rlhf import door
from rlhf.errors import ResourceError


@dataclass
class Arguments:
    overrides: list[str]


def main(own: Arguments) -> None:
    from rlhf.preflight.plan import lines, remedy, resolve

    plan = resolve(own.overrides)
    print("\n".join(lines(plan)), flush=True)
    if not plan.fits:
        settings, less = remedy(own.overrides, plan)
        kind = "fix     " if less.fits else "no fix   a smaller model, or more memory: the least is"
        print(f"{kind} {' '.join(settings)}   needs {less.gigabytes:.2f} GB")
        sys.exit(ResourceError.code)


if __name__ == "__main__":
    door.enter(main, Arguments)
