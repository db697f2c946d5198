"""How other programs find foveate: one file a program."""
