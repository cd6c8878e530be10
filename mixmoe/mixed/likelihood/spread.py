"""Gaussian experts whose cross-products are kept by the workers of a cluster.

What is summed over subjects, or is as long as they are and small, is computed there; see
`mixmoe.mixed.likelihood.observed.by_workers`. All else that asks for subjects gets them brought here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.gaussian import ClosedExperts, GaussianExperts, MomentDensities
from mixmoe.mixed.likelihood.patterns import patterned, patterns_of
from mixmoe.mixed.parameters import Params
from mixmoe.partitions.on_workers import OnWorkers

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class SpreadPart:
    """Some of the subjects.

    Attributes
    ----------
    experts : GaussianExperts
    W : ndarray, shape (n, m)
        Gate design in working coordinates.
    """

    experts: GaussianExperts
    W: Array


@dataclass(frozen=True, slots=True)
class SpreadExperts(ClosedExperts):
    """Experts with iid Gaussian errors whose subjects are spread over workers, see `Experts`.

    Attributes
    ----------
    parts : OnWorkers
        Of `SpreadPart`, in the order of the subjects.
    counts : ndarray of int, shape (N,)
        Rows of each subject.
    ends : ndarray of int
        Number of subjects of the parts up to each.
    """

    parts: OnWorkers
    counts: NDArray[np.intp]
    ends: NDArray[np.intp]

    by_rows: ClassVar[bool] = False

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.counts.size

    def mapped(self, task: Callable[[SpreadPart], Found]) -> list[Found]:
        """What a task finds in each part, in the order of the subjects."""
        return self.parts.mapped(task)

    def here(self) -> GaussianExperts:
        """All subjects, brought here."""
        return joined(self.parts.mapped(_experts_of))

    def take(self, subjects: NDArray[np.intp]) -> GaussianExperts:
        """The experts of some of the subjects, each possibly repeated, brought here."""
        order = np.argsort(subjects, kind="stable")
        part = np.searchsorted(self.ends, subjects[order], side="right")
        cuts = np.searchsorted(part, np.arange(1, self.ends.size))
        begins = self.ends - np.diff(self.ends, prepend=0)
        places = [at - begin for at, begin in zip(np.split(subjects[order], cuts), begins, strict=True)]
        return joined(self.parts.mapped_with(_taken, places)).take(np.argsort(order, kind="stable"))

    def blocks(self, n_experts: int) -> "Iterator[tuple[slice, GaussianExperts]]":
        """Consecutive runs of subjects, part by part brought here."""
        first = 0
        for i in range(self.ends.size):
            part = self.parts.one(i, _experts_of)
            for where, experts in part.blocks(n_experts):
                yield slice(first + where.start, first + where.stop), experts
            first += part.n_subjects

    def densities(self, params: Params) -> MomentDensities:
        """Log-densities at S parameter vectors, of subjects brought here."""
        return self.here().densities(params)

    def without_response(self) -> GaussianExperts:
        """The same with a response of zero, brought here."""
        return self.here().without_response()

    def without_random_effects(self) -> GaussianExperts:
        """The same without random effects, brought here."""
        return self.here().without_random_effects()

    def sort_keys(self) -> tuple[Array, ...]:
        """Cross-products with the response and, where all subjects together are of few patterns, these."""
        of_parts = zip(*self.parts.mapped(_keys), strict=True)
        n, ZZ, Xy, yy = (np.concatenate(parts, axis=-1) for parts in of_parts)
        found = patterns_of(n, ZZ, len(Xy))
        return (*Xy, yy, *([] if found is None else [found.of_subjects.astype(float)]))


def _experts_of(part: SpreadPart) -> GaussianExperts:
    """The subjects of a part without what follows from their products: it is made again faster than it is sent."""
    return GaussianExperts(*(getattr(part.experts, product.name) for product in fields(GaussianExperts)))


def _keys(part: SpreadPart) -> tuple[Array, ...]:
    """What the order of subjects in a search follows from."""
    experts = part.experts
    return experts.n, experts.ZZ, experts.Xy, experts.yy


def _taken(part: SpreadPart, subjects: NDArray[np.intp]) -> GaussianExperts:
    return _experts_of(part).take(subjects)


def joined(parts: list[GaussianExperts]) -> GaussianExperts:
    """Subjects of several parts, one after the other; by patterns, where those of all are few."""
    products = (part.name for part in fields(GaussianExperts))
    whole = GaussianExperts(*(np.concatenate([getattr(one, name) for one in parts], axis=-1) for name in products))
    return patterned(whole)
