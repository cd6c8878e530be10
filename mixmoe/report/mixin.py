"""What every fitted model offers to other programs and to readers."""

import os
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.report.excel import write_excel
from mixmoe.report.frames import broom_augment, broom_glance, broom_tidy


class Reporting:
    """Frames shaped as those of R's broom, Excel, and the report.

    Notes
    -----
    The column names are broom's, with dots, so that frames of both worlds can be stacked. The same numbers with names
    that are attributes in Python are in `MoEResults.to_frame`.
    """

    def tidy(self: Any, alpha: float = 0.05) -> pd.DataFrame:
        """One row per parameter.

        Parameters
        ----------
        alpha : float
            One minus the level of the limits.

        Returns
        -------
        DataFrame
            Columns: name, term, block, expert, estimate, std.error, statistic, p.value, conf.low, conf.high.
        """
        return broom_tidy(self.to_frame(alpha))

    def glance(self: Any) -> pd.DataFrame:
        """One row for the whole fit.

        Returns
        -------
        DataFrame
            Columns: family, experts, nobs, n.units (subjects, or rows where there are none), df, df.residual, logLik,
            AIC, BIC, sABIC, ICL, entropy, converged.
        """
        return broom_glance(self)

    def augment(self: Any, data: Any = None) -> pd.DataFrame:
        """The data with what the fit says about each row.

        Parameters
        ----------
        data : DataFrame, optional
            The frame that was fitted, to have all of its columns and rows; rows left out of the fit then have missing
            values. By default the used columns of the used rows, in their order.

        Returns
        -------
        DataFrame
            The columns of the data, then ``.fitted`` and ``.resid`` (on the scale of the response in the formula; of
            the subject, where subjects have random effects), ``.class`` (most probable expert) and ``.probability``
            (of that expert).

        Raises
        ------
        ArgumentError
            If `data` has another number of rows than the data of the fit.
        """
        return broom_augment(self.model.design, self.classify(), self._by_row(), data)

    def to_excel(self: Any, path: str | os.PathLike[str], alpha: float = 0.05, data: bool = True) -> None:
        """Write a workbook with the sheets estimates, fit, subjects and rows; needs openpyxl.

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
        sheets = {"estimates": self.tidy(alpha), "fit": self.glance()}
        if data:
            subjects = pd.concat([self.classify(), self.responsibilities], axis=1).rename_axis(
                self.model.design.names.group or "row"
            )
            sheets |= {"subjects": subjects.reset_index(), "rows": self.augment()}
        write_excel(path, sheets)

    def _by_row(self: Any) -> pd.DataFrame:
        """Fitted values and residuals of the rows used, in the order of the data; families without them override."""
        return pd.DataFrame({".fitted": np.asarray(self.fitted()), ".resid": np.asarray(self.resid())})
