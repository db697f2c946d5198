"""lmms-eval finds the model `foveate` here, by the entry point in the group `lmms_eval.models`.

It asks while it is itself being imported, so nothing of it may be imported before the call, and the class
behind the name loads only when it is wanted.
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval wants to know of the model: its name, and where its class lives."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="foveate.eval.lmms.plugin.Foveate")
