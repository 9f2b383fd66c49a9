"""Plans: which runs a table or a figure is made of."""
