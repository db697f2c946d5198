"""Tensor maths: how many tokens stay, which ones, and their places. Imports only torch."""
