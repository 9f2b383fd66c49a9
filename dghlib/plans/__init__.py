"""Plans: the runs of which a table or a figure consists."""
