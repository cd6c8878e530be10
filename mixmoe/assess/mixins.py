"""What every fitted model offers to judge it: methods that unpack, call functions on arrays, and wrap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.arguments import checked_choice
from mixmoe.assess.adequacy import Adequacy, ClassificationTable, adequacy, classification_table, memberships
from mixmoe.assess.distal import Distal, Predictors, distal, predictors
from mixmoe.assess.effects import GatePoint, gate_effects
from mixmoe.assess.influence import FirstOrder, Influence, influence
from mixmoe.assess.three_step import METHODS, Assignment, Method, build_assignment
from mixmoe.em import EMFit
from mixmoe.errors import ArgumentError
from mixmoe.inference.covariance import ParamCov
from mixmoe.inference.intervals import checked_alpha

GIVEN = ("history", "covariates")

_REFIT = "refit without the units in question"
_NAIVE = "method='naive' does without, but is not corrected for classification error"


class Assessment:
    """Classification, influence of single units, effects of gate covariates.

    Notes
    -----
    A family supplies `_first_order` and `_gate_points`; without them the methods that need them say so.
    """

    model: Any
    em: EMFit
    cov: ParamCov
    bse: Any
    responsibilities: Any

    def adequacy(self) -> Adequacy:
        """How well units are told apart: average posterior probabilities, odds of correct classification, entropy.

        Returns
        -------
        Adequacy
            Prints as a table; ``to_frame()`` has one row per expert.

        References
        ----------
        Nagin (2005), Group-Based Modeling of Development, chapter 5.
        """
        return adequacy(self.em.responsibilities, self._unit_word)

    def classification_table(self) -> ClassificationTable:
        """Most probable expert against posterior mass, with the matrix D of three-step methods.

        Returns
        -------
        ClassificationTable
            Prints as two tables; ``to_frame("probabilities")`` is D, ``P(most probable s | expert t)``.
        """
        return classification_table(self.em.responsibilities)

    def memberships(self) -> pd.DataFrame:
        """Most and second most probable expert of each unit, and how certain the choice is.

        Returns
        -------
        DataFrame
            Columns: expert, probability, second, second_probability, margin, entropy (0 certain, 1 no idea).
        """
        return memberships(self.em.responsibilities).set_axis(self.responsibilities.index)

    def influence(self) -> Influence:
        """What would happen to the estimates without each unit, to first order.

        Returns
        -------
        Influence
            ``to_frame()`` has one row per unit: a distance like Cook's, then the change of every parameter.

        Raises
        ------
        ArgumentError
            If the family has no score per unit.
        """
        names = self.model.layout.names
        return influence(self._first_order("influence"), self.responsibilities.index, names, self.bse.to_numpy())

    def gate_effects(
        self, covariates: str | Sequence[str] | None = None, *, alpha: float = 0.05, dummy: bool = False
    ) -> pd.DataFrame:
        """Average marginal effects of gate covariates on the probability of each expert.

        Parameters
        ----------
        covariates : str or sequence of str, optional
            Columns of the data that the gate uses; by default all of them.
        alpha : float
            One minus the level of the limits.
        dummy : bool
            Whether a numeric column of zeros and ones changes from 0 to 1, as a category does, instead of having a
            slope.

        Returns
        -------
        DataFrame
            One row per covariate (and level) and expert: covariate, contrast (``"dy/dx"``, or a level minus the first),
            expert, for varying coefficients the index, estimate, std_error, statistic, p_value, conf_low, conf_high.

        Raises
        ------
        ArgumentError
            If the gate has no covariates.

        Notes
        -----
        The mean over the units of the derivative of ``pi_k(w_i)``, through every column that holds the covariate
        (powers, interactions, splines), or of the difference between two levels. Standard errors by the delta method
        from the covariance of the fit, covariates taken as given. With varying coefficients, at index values.

        References
        ----------
        Greene (2012), Econometric Analysis, section 17.3.2.
        """
        if self.model.n_experts == 1:
            raise ArgumentError("gate_effects needs at least 2 experts, got 1, whose probability is one")
        points = self._gate_points()
        return gate_effects(self.model.design, points, self.cov.of_bounded, checked_alpha(alpha), covariates, dummy)

    def distal(self, formula: str, outcomes: Any, *, method: Method = "bch", kind: str = "auto") -> Distal | Predictors:
        """An outcome by expert, corrected for classification error: a three-step analysis.

        Parameters
        ----------
        formula : str
            ``"outcome ~ expert"``, with further predictors ``"outcome ~ expert + age"``, ``"outcome ~ expert * age"``;
            ``"expert ~ age"`` is `covariates`.
        outcomes : DataFrame
            One row per subject, with the column of the subjects or their labels as index; per row where the fit has no
            subjects. Subjects without complete outcomes are counted, not used.
        method : {"bch", "ml", "naive"}
            Weights that undo the misclassification; likelihood with it; the most probable expert taken as known, for
            comparison. ``"bch"`` assumes least, ``"ml"`` is a little more precise if the outcome is normal given the
            expert, and may be worse than ``"naive"`` if it is not.
        kind : {"auto", "numeric", "categorical"}
            Of the outcome. By default text, truth values and numbers that are only 0 and 1 are categories.

        Returns
        -------
        Distal
            ``to_frame()``: means or probabilities by expert; ``pairwise()``: differences; ``overall``: Wald test.

        Raises
        ------
        ArgumentError, DesignError, FormulaError
            If the outcomes do not fit the formula or the fit.

        Warns
        -----
        AssumptionWarning
            If ``"ml"`` is asked for a numeric outcome that is skewed given the expert (`Distal.skewness`).

        Notes
        -----
        Standard errors carry the uncertainty of all three steps: estimating functions of step 3, of the matrix of
        classification errors and of the fit are stacked, and their sandwich taken over subjects. The correction assumes
        that assignments depend on outcome and predictors only through the expert; leave a predictor of step 3 out of
        the gate, or the part of it that the assignments already hold is counted twice. ``"ml"`` gives a numeric outcome
        a variance per expert, and lets membership depend on the predictors by a multinomial logit.

        References
        ----------
        Bolck, Croon & Hagenaars (2004), Political Analysis 12, 3-27. Vermunt (2010), Political Analysis 18, 450-469.
        Bakk, Tekle & Vermunt (2013), Sociological Methodology 43, 272-311. Asparouhov & Muthen (2014), Structural
        Equation Modeling 21, 329-341. Bakk, Oberski & Vermunt (2014), Political Analysis 22, 520-540.
        """
        left, tilde, right = str(formula).partition("~")
        if tilde and left.strip() == "expert":
            return self.covariates(f"~{right}", outcomes, method=method)
        checked_choice(method, "method", METHODS)
        checked_choice(kind, "kind", ("auto", "numeric", "categorical"))
        return distal(self.model.design, self._assignment("distal", method), formula, outcomes, method, kind)

    def covariates(self, formula: str, data: Any, *, method: Method = "ml") -> Predictors:
        """Covariates of membership, corrected for classification error: a three-step analysis.

        Parameters
        ----------
        formula : str
            ``"~ z1 + z2"``.
        data : DataFrame
            One row per subject, as in `distal`.
        method : {"ml", "bch", "naive"}

        Returns
        -------
        Predictors
            ``to_frame()``: log odds against expert 1; ``tests()``: each term, a factor as a whole, over all experts.

        Raises
        ------
        ArgumentError, DesignError, FormulaError
            If the data do not fit the formula or the fit.

        Notes
        -----
        For covariates that are not in the gate; those of the gate have their estimates in the fit. See `distal`.
        Log odds have the small-sample bias of any logit, away from zero and of the order of one over the number of
        subjects (``tests/simulation/THREE_STEP.md``); the correction adds less than it.

        References
        ----------
        Vermunt (2010), Political Analysis 18, 450-469.
        """
        checked_choice(method, "method", METHODS)
        return predictors(self.model.design, self._assignment("covariates", method), formula, data, method)

    def _assignment(self, what: str, method: Method) -> Assignment:
        """Steps 1 and 2 of a three-step analysis; the naive one takes memberships as known."""
        if self.model.n_experts == 1:
            raise ArgumentError(f"{what} needs at least 2 experts, got 1; regress on the covariates directly")
        tau = self.em.responsibilities
        if method == "naive":
            return build_assignment(tau, np.zeros((len(tau), 0)), np.zeros((*tau.shape, 0)))
        at = self._first_order(what)
        return build_assignment(tau, at.moves, at.slopes)

    @property
    def _unit_word(self) -> str:
        """What the independent units are."""
        return "rows" if self.model.design.names.group is None else "subjects"

    def _first_order(self, what: str) -> FirstOrder:
        """Scores, inverse information and slopes of the responsibilities; families without them refuse."""
        raise ArgumentError(
            f"{what} needs a score per unit of one parameter vector, which {self.model.family_name} does not have; "
            + (_REFIT if what == "influence" else _NAIVE)
        )

    def _gate_points(self) -> tuple[GatePoint, ...]:
        """The gate, at several index values if coefficients vary; families without a softmax gate refuse."""
        raise ArgumentError(f"{self.model.family_name} has no softmax gate, so it has no gate effects; use predict()")
