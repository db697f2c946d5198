"""lmms-eval finds the model `foveate` here, through the entry point in the group `lmms_eval.models`.

lmms-eval calls `manifest` while it is being imported. So import lmms-eval only within the call. The model's class loads
when it is used.
"""

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's manifest of the model: its name, and the path of its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="foveate.eval.lmms.plugin.Foveate")
