"""Rows of replicates in a file, so that a study that was ended can be gone on with."""

import json


class KeptRows:
    """Rows of replicates, in a file of one line per seed where one is given.

    Parameters
    ----------
    path : Path or None
        Of the file that is read and added to.
    """

    def __init__(self, path):
        self.path, self.rows, self.seeds = path, [], set()
        for line in path.read_text().splitlines() if path and path.exists() else ():
            self._take(json.loads(line))

    def _take(self, found):
        self.seeds.add(found["seed"])
        self.rows += found["rows"]

    def add(self, seed, rows):
        """Keep the rows of one seed."""
        self._take({"seed": seed, "rows": rows})
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps({"seed": seed, "rows": rows}) + "\n")
