"""The methods, one file per paper. `foveate.methods()` discovers them here."""

from foveate.plain.room import make_callable

make_callable(__name__, "foveate.registry:methods")
