"""Fits on their way out of the package: tidy frames, spreadsheets, tables of several fits, and the report."""
