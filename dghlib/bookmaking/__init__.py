"""The making of the book: executes notebooks, renders pages, lists required records, predicts the remaining time."""
