"""What every mixture has: a gate, an estimate with the record of its starts, criteria, resampling."""
