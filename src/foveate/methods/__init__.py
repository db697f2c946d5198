"""The methods, one file per paper; `foveate.methods()` finds them here."""
