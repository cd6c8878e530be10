"""Penalised functions of covariates in the experts and the gate of a MEMoE."""
