"""What a flag says, to whoever fits the model and to whoever reads the table."""

import pytest

from mixmoe.mixture.estimate import Flag, Remark


@pytest.mark.parametrize(
    ("fact", "remedy", "message", "note"),
    [
        ("The grid is coarse.", "Use more points.", "The grid is coarse. Use more points.", "The grid is coarse."),
        ("the grid is coarse", "use more points", "the grid is coarse; use more points", "The grid is coarse."),
        ("Nothing helps.", "", "Nothing helps.", "Nothing helps."),
    ],
)
def test_fact_and_remedy(fact, remedy, message, note):
    for said in (Flag("coarse_grid", fact, remedy), Remark(fact, remedy)):
        assert (said.message, said.note) == (message, note)
