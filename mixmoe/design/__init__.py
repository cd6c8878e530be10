"""Formula and data in, arrays out."""
