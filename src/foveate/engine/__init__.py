"""The engine: vision tokens leave between the layers of a model nobody modified."""

import foveate._transformers  # noqa: F401  # refuses a transformers it does not know
