"""PPO on one base model, with an adapter a role and a loop of our own."""
