"""The KL coefficient, fixed or steered towards a target."""

from dataclasses import dataclass


@dataclass
class KLController:
    """Proportional control of the KL coefficient in log space (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    With e = clip(kl / target - 1, -0.2, 0.2) the coefficient is multiplied by 1 + e * episodes / horizon after every
    batch. Without a target it stays as it is. `kl` is nats a reply, the mean over the batch.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, episodes: int) -> None:
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * episodes / self.horizon
