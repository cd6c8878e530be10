"""Observed-data likelihood of a MEMoE: the seam between the mixture and its experts, and the experts."""
