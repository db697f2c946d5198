"""Tensor maths: how many tokens stay, which, and where they stand. Imports torch and nothing else."""
