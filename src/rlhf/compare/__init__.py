"""PPO against DPO on the same data: the frontier of preference against KL, and where a reward stops being worth chasing."""
