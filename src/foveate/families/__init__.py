"""The model families, one file each; `foveate.families()` finds them here."""

import foveate._transformers  # noqa: F401  # refuses a transformers it does not know
from foveate.plain.room import make_callable

make_callable(__name__, "foveate.registry:families")
