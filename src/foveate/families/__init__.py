"""The model families, one file each; `foveate.families()` finds them here."""
