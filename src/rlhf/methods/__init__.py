"""The four methods, a page each: `build(stage, tokenizer, data)` gives a trainer."""
