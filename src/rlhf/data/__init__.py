"""Rows in, token ids out: sources, the contract on columns, chat templates and loss masks, and a ledger of every row."""
