"""The model families, one file each. `foveate.families()` discovers them here."""

import foveate._transformers  # noqa: F401  # refuses unknown versions of transformers
from foveate.plain.room import make_callable

make_callable(__name__, "foveate.registry:families")
