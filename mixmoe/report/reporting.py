"""What every fitted model offers to other programs and to readers."""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.atomic import write_text
from mixmoe.errors import ArgumentError
from mixmoe.families import Model
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.report.checklists import check_answers
from mixmoe.report.content import sections
from mixmoe.report.evidence import Fitted, gather
from mixmoe.report.page import page
from mixmoe.report.tidy import broom_augment, broom_glance, broom_tidy, write_excel


class Reporting:
    """Frames shaped as those of R's broom, Excel, and the report.

    Notes
    -----
    The column names are broom's, with dots, so that frames of both worlds can be stacked. The same numbers with names
    that are attributes in Python are in `Results.to_frame`.
    """

    model: Model
    to_frame: Callable[..., pd.DataFrame]
    fitted: Callable[..., Any]
    resid: Callable[..., pd.Series]

    def tidy(self, alpha: float = 0.05) -> pd.DataFrame:
        """One row per parameter, as `Results.to_frame` but with its name in a column and the column names of broom.

        Returns
        -------
        DataFrame
            Columns: name, term, block, expert, estimate, std.error, statistic, p.value, conf.low, conf.high, df.
        """
        return broom_tidy(self.to_frame(alpha))

    def glance(self: Fitted) -> pd.DataFrame:
        """One row for the whole fit.

        Returns
        -------
        DataFrame
            Columns: family, nobs, n.units (subjects, or rows where there are none), df, df.residual, logLik, AIC, BIC,
            sABIC, converged; of a mixture also experts, ICL and entropy.
        """
        return broom_glance(self)

    def augment(self, data: Any = None) -> pd.DataFrame:
        """The data with what the fit says about each row.

        Parameters
        ----------
        data : DataFrame, optional
            The frame that was fitted, to have all of its columns and rows, in any order if its index tells rows apart;
            rows left out of the fit then have missing values. By default the used columns of the used rows, in their
            order.

        Returns
        -------
        DataFrame
            The columns of the data, then ``.fitted`` and ``.resid`` (on the scale of the response in the formula; of
            the subject, where subjects have random effects); of a mixture ``.class`` (most probable expert) and
            ``.probability`` (of that expert).

        Raises
        ------
        ArgumentError
            If `data` are not the data of the fit.
        """
        return broom_augment(self.model.design, self._by_class(), self._by_row(), data)

    def to_excel(self: Fitted, path: str | os.PathLike[str], alpha: float = 0.05, data: bool = True) -> None:
        """Write a workbook with the sheets estimates, fit, notes, subjects and rows; needs openpyxl.

        Parameters
        ----------
        path : path-like
            Ends in ``.xlsx``.
        alpha : float
            One minus the level of the limits.
        data : bool
            Whether subjects and rows go into the workbook.

        Raises
        ------
        MissingExtraError
            If openpyxl is not installed.
        ArgumentError
            If the path has another ending.
        """
        estimates = self.tidy(alpha)
        notes = pd.DataFrame({"note": list(estimates.attrs["notes"])})
        sheets = {"estimates": estimates, "fit": self.glance(), "notes": notes}
        subjects = self._by_unit() if data else None
        if subjects is not None:
            sheets["subjects"] = subjects.rename_axis(self.model.design.names.group or "row").reset_index()
        if data:
            sheets["rows"] = self.augment()
        write_excel(path, sheets)

    def report(
        self: Fitted,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        author: str | None = None,
        notes: str | None = None,
        selection: Any = None,
        distal: Any = None,
        answers: Mapping[str, str] | None = None,
        alpha: float = 0.05,
        figures: bool = True,
        subjects: bool = True,
    ) -> Path:
        """Write one self-contained web page: data, estimates, figures, classification, checklists, code.

        Parameters
        ----------
        path : path-like
            Ends in ``.html``.
        title, author : str, optional
        notes : str, optional
            Text at the top; an empty line begins a new paragraph.
        selection : Selection, optional
            What `mixmoe.select` returned: all models that were compared.
        distal : Distal or sequence of Distal, optional
            What `distal` returned.
        answers : mapping of str to str, optional
            Answers to items of the checklists that no fit can give, e.g. ``{"G1": "Years since enrolment."}``.
        alpha : float
            One minus the level of the limits.
        figures : bool
            Whether to draw; needs matplotlib.
        subjects : bool
            Whether subjects may be named, as the most influential ones are.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ArgumentError
            If the path has another ending or an answer belongs to no item.
        MissingExtraError
            If jinja2 is not installed, or if matplotlib is not and figures are wanted.

        Notes
        -----
        The page needs no other file and no network, runs no script, follows the light or dark setting of its reader and
        prints. Whatever comes from the data is shown as text. Of a mixture it answers the items of GRoLTS (van de
        Schoot et al. 2017) and SMART-LCA (van Lissa et al. 2023), or says what is not reported and why.

        References
        ----------
        van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), Structural Equation Modeling 24, 451-467.
        van Lissa, Garnier-Villarreal & Anadria (2023), Structural Equation Modeling, doi:10.1080/10705511.2023.2250920.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise ArgumentError(f"path must end in .html, got {str(path)!r}")
        evidence = gather(self, checked_alpha(alpha), selection, distal, answers, subjects)
        check_answers(evidence)
        made = f"mixmoe, {datetime.now(UTC):%d %B %Y}"
        heading = title or f"{self.model.spec.name} of {self.model.formula.response}"
        byline = f"{author}; {made}" if author else made
        foot = "Made by mixmoe from the fit; nothing on this page was typed in, but what is marked as the author's."
        write_text(path, page(heading, byline, sections(evidence, notes, figures), foot))
        return Path(path)

    _report_plots: tuple[str, ...] = ("trajectories", "gate")

    def _by_class(self) -> pd.DataFrame | None:
        """Most probable expert of each unit and its probability; None in a family without experts."""
        return None

    def _by_unit(self) -> pd.DataFrame | None:
        """What is known of each unit, for a sheet of its own; None if that is nothing."""
        return None

    def _by_row(self) -> pd.DataFrame:
        """Fitted values and residuals of the rows used, in the order of the data; families without them override."""
        return pd.DataFrame({".fitted": np.asarray(self.fitted()), ".resid": np.asarray(self.resid())})
