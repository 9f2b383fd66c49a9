"""Experiments: which runs a table is made of, running what is missing, and showing what came out."""
