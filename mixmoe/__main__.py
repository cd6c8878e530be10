"""``python -m mixmoe``: see `mixmoe.cli.main`."""

import sys

from mixmoe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
