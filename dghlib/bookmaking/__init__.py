"""The book: executes notebooks, renders pages, says what records it holds and how long it will take."""
