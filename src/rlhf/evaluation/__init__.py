"""What a finished stage is worth: replies to prompts nobody trained on, the true preference, win rates, KL, length."""
