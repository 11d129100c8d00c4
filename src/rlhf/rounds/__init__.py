"""Rounds of feedback: what people say of the policy of today trains the policy of tomorrow; held against asking once."""
