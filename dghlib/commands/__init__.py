"""The commands of `dgh`. The parameters of a function are its options; it calls the library and prints the result."""
