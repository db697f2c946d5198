"""Methods by name: which there are, and one grammar for all commands, lmms-eval and Python.

v2drop                                  a method with its defaults
v2drop/llava-1.5-7b/192                 a preset
v2drop:metric=cosine;layers=3,17,22     settings
visionzip+v2drop:scope=image+finalkv    a chain
tuned.json                              the record of a tuning, or a method's own JSON
{"method": "v2drop", "keep": [0.5]}     JSON, as `Method.to_json` writes it
"""

from foveate.methods.base import Method
from foveate.methods.catalogue import discovered, from_dict, method, methods, preset, presets
from foveate.methods.grammar import read

__all__ = ["discovered", "from_dict", "method", "methods", "parse", "preset", "presets"]


def parse(text: str) -> Method:
    """The method that a text names; see this module's grammar, and `foveate.methods.grammar` for its parts.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If a setting is unknown, given twice, or of the wrong type.
        UnknownNameError: If there is no method or preset of a name.
    """
    return read(text).method()
