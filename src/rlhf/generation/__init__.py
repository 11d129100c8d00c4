"""Replies sampled from a role, and the log-probabilities of their tokens."""
