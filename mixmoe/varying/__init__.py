"""Varying-coefficient mixtures of experts: every coefficient a smooth function of an index."""
