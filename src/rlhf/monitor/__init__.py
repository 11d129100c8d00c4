"""Watches a run for signs that its reward is being gamed."""
