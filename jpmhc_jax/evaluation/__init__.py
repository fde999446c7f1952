"""ARC voting and pass@k, exact accuracy, perplexity, mixer diagnostics."""
