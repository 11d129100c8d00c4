"""Weights in memory: tokenizers, bases in 4 bit or not, adapters, scalar heads, and where they are kept."""
