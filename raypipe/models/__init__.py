"""All that knows a transformer: finding checkpoints, loading them, words to pieces, hidden states to word states."""
