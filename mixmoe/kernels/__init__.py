"""Pure functions on arrays; they assume clean input."""
