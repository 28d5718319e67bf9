"""The way out: from a queued row to the provider's answer, its events, and nothing of the dialogue (contract 6, 7)."""
