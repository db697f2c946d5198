"""The grammar of `foveate.methods.names`: from a text, a JSON object or a file to the methods that it names."""

from foveate._spelling import Written, settings_in, unquoted, written
from foveate.methods import catalogue
from foveate.methods.base import Method
from foveate.methods.named import Member, Named
from foveate.methods.values import listed, refuse_unknown, values_of

__all__ = ["read"]


def read(text: str) -> Named:
    """What a text says; the grammar is that of `foveate.methods.names`.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If a setting is unknown or given twice.
        UnknownNameError: If there is no method or preset of a name.
    """
    members = tuple(_member(part) for part in written(text))
    return Named(unquoted(text.strip()), members)


def _member(part: Written) -> Member:
    if part.values is not None:
        kind = catalogue.method(part.name)
        for key in sorted(part.values):
            refuse_unknown(kind, key)
        return Member(kind, listed(kind, part.values))
    if part.is_file:
        return _changed(catalogue.from_dict(settings_in(part.name)), part)
    if part.is_preset:
        return _changed(catalogue.preset(part.name), part)
    kind = catalogue.method(part.name)
    return Member(kind, values_of(kind, part.pairs))


def _changed(ready: Method, part: Written) -> Member:
    """A method with these settings changed."""
    return Member(type(ready), values_of(type(ready), part.pairs), ready)
