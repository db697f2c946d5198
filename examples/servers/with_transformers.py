"""Run `transformers serve` with a method applied to every model that it loads.

    pip install 'transformers[serving]'
    python examples/servers/with_transformers.py MODEL v2drop 0.3 [--port 8000 …]

Arguments after the retention go to `transformers serve`. Clients of OpenAI's API need no change.
"""

import sys
from typing import Any
from weakref import WeakSet

from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.transformers import app

import foveate as fv

load = ModelManager.load_model_and_processor
dropping: WeakSet[Any] = WeakSet()


def serve(method: str, retention: float) -> None:
    """Make the server apply this method to each model when it first loads it."""

    def load_and_apply(manager: ModelManager, *arguments: Any, **options: Any) -> Any:
        model, processor = load(manager, *arguments, **options)
        if model not in dropping:
            fv.apply(model, method, retention=retention)
            dropping.add(model)
        return model, processor

    ModelManager.load_model_and_processor = load_and_apply


if __name__ == "__main__":
    name, method, retention, *rest = sys.argv[1:]
    serve(method, float(retention))
    sys.argv = ["transformers", "serve", name, *rest]
    app()
