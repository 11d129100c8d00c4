"""What customers say to single replies. A folder of its own: a changed byte beside `rlhf.support.generator` makes every run of `support` stale."""
