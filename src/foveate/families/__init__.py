"""The model families, one file each; `foveate.families()` finds them here."""

from foveate._room import make_callable

make_callable(__name__, "foveate.registry:families")
