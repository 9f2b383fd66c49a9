"""Experiments: the runs of a table, the computation of missing runs, and their records."""
