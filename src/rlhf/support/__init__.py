"""Customer support dialogues with a known true preference: the dataset on which every claim can be checked."""
