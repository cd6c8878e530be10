"""Networks as experts and gate of a mixture of mixed models."""
