"""What a fitted MEMoE offers beyond the common base."""

from typing import TYPE_CHECKING

from mixmoe.results import MoEResults


class MEMoEResults(MoEResults):
    """A fitted mixed-effects mixture of experts."""
