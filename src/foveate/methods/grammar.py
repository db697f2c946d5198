"""The grammar of `foveate.methods.names`: from a text, a JSON object or a file to the methods that it names."""

from foveate._spelling import Written, settings_in, unquoted, written
from foveate.methods import catalogue
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
    if part.is_file or part.is_preset:
        ready = catalogue.from_dict(settings_in(part.name)) if part.is_file else catalogue.preset(part.name)
        return Member(type(ready), values_of(type(ready), part.pairs), ready)
    kind = catalogue.method(part.name)
    return Member(kind, values_of(kind, part.pairs))
