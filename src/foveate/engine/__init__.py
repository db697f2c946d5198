"""The engine: drops vision tokens in a model that stays as it is. docs/architecture.md shows the way."""

import foveate._transformers  # noqa: F401  # refuses a transformers it does not know
