"""Predictions of a MEMoE."""
