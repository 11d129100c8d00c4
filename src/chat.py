"""Talk to a trained model in the terminal; two runs at once answer side by side.

  python src/chat.py run=support/ppo [run=support/sft,support/ppo] [temperature=0] [max_new_tokens=128] [root=runs]

/new forgets the conversation, /quit or the end of the input leaves.
"""

from pathlib import Path

from rlhf import door
from rlhf.errors import ConfigError


def main() -> None:
    own, rest = door.own_arguments(__doc__ or "", ("run", "temperature", "max_new_tokens", "root"))
    if rest or "run" not in own:
        raise ConfigError(
            f"{' '.join(rest) or 'run'}: {'unknown' if rest else 'missing'}\n  python src/chat.py run=support/ppo"
        )
    try:
        temperature, limit = float(own.get("temperature", "0")), int(own.get("max_new_tokens", "128"))
    except ValueError as error:
        raise ConfigError(f"temperature and max_new_tokens must be numbers: {error}") from error
    from rlhf.chat import chat

    runs = [Path(own.get("root", "runs")) / name for name in own["run"].strip("[]").split(",")]
    chat(runs, temperature, limit)


if __name__ == "__main__":
    door.enter(main)
