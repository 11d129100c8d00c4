"""Stock TRL's PPO against ours on the same random weights: memory, time, and what a recipe gains."""
