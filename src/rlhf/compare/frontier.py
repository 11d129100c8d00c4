"""What an arm can reach at a given KL, so that two arms are compared at equal distance from where they started."""

import numpy as np


def at_equal_kl(kl: np.ndarray, chosen_by: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`[C]` KLs and gold of an arm's checkpoints, `[G]` KLs to compare at -> `[G, C]` weights of the checkpoints.

    `weights @ gold` with gold of other prompts than `chosen_by` does not flatter the arm with more checkpoints. The frontier
    is the checkpoints that no other one beats at a smaller KL, linear in sqrt(KL) between them and level after the last.
    A row is nan where the arm has no checkpoint so near or so far: nothing is extrapolated. Put the start in with KL 0.
    """
    d = np.sqrt(np.maximum(np.asarray(kl, dtype=float), 0.0))
    order = np.lexsort((-np.asarray(chosen_by), d))
    best, kept = -np.inf, []
    for index in order:
        if chosen_by[index] > best:
            best = chosen_by[index]
            kept.append(index)
    weights = np.full((len(at), len(d)), np.nan)
    for row, where in enumerate(np.sqrt(np.maximum(np.asarray(at, dtype=float), 0.0))):
        if not d[kept[0]] <= where <= d.max():
            continue
        hats = np.eye(len(kept))
        weights[row] = 0.0
        weights[row, kept] = [np.interp(where, d[kept], hat) for hat in hats]
    return weights
