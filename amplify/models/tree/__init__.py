"""Trees of tokens through a model: what prompts share is forwarded once."""
