"""Train one stage of a recipe.   python src/train.py recipe=support/dpo [group=option] [key=value]"""

from typing import Any

from rlhf import door


def main(cfg: Any) -> None:
    door.run_job(cfg)


if __name__ == "__main__":
    door.enter(main)
