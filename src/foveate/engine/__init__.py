"""The engine: drops vision tokens in an unmodified model. See docs/architecture.md for the order of its files."""

import foveate._transformers  # noqa: F401  # refuses an unsupported transformers version
