"""MEMoE: mixed-effects mixture of experts."""
