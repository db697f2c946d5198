"""Entry points by which other programs find foveate, one file per program."""
