"""Talk to a trained model in the terminal; two runs at once answer side by side.

  python src/chat.py run=support/ppo [run=support/sft,support/ppo] [temperature=0] [max_new_tokens=128] [run.root=runs]

/new forgets the conversation, /quit or the end of the input leaves.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf import door


@dataclass
class Arguments:
    run: list[str]
    temperature: float = 0.0
    max_new_tokens: int = 128
    run_root: str = "runs"


def main(own: Arguments) -> None:
    from rlhf.chat import chat

    chat(Path(own.run_root), own.run, own.temperature, own.max_new_tokens)


if __name__ == "__main__":
    door.enter(main, Arguments)
