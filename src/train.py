"""Train one stage of a recipe.   python src/train.py recipe=support/dpo [group=option] [key=value]"""

import hydra
from omegaconf import DictConfig

from rlhf import door


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    door.run_job(cfg)


if __name__ == "__main__":
    door.enter(main)
