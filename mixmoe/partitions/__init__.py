"""Data in partitions, more than memory holds: files, and the design that is made of them in passes."""
