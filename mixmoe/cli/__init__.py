"""The command line: ``python -m mixmoe`` and ``mixmoe``."""
