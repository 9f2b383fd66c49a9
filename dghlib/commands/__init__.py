"""What each command of `dgh` does: its parameters are its options; it calls the library, prints a line or a table."""
