"""How fast the methods are; each module is a program: python -m benchmarks.NAME."""
