"""The methods, one file per paper; `foveate.methods()` finds them here."""

import foveate.methods.chain  # noqa: F401  # so that + makes one, whatever else was imported
from foveate._room import make_callable

make_callable(__name__, "foveate.registry:methods")
