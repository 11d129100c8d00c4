"""TRL's matrix to the vocabulary in tiles that suit a CPU.

Since 1.15 the losses of TRL make log-probabilities of a tile of tokens at a time (`trl.kernels.chunked_logprob`): 4,096 of them, which a
kernel folds on a GPU. Where there is none, torch does, with eight copies of the tile in fp32, and masked tokens are read too.
"""

from importlib import import_module

from rlhf.methods import TILE


def small_tiles() -> None:
    """From now on a tile is TILE tokens, and of those only that are learned, in every trainer of this process."""
    kernels, trainers = import_module("trl.kernels.chunked_logprob"), import_module("trl.trainer.utils")
    vars(kernels)["TOKEN_CHUNK_SIZE"] = TILE
    vars(trainers)["_use_triton"] = lambda device: True  # which decides there of masked tokens alone
