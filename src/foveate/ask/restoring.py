"""A prefix from a file, for the model that looked."""

from pathlib import Path

from foveate._files import named
from foveate.ask.answering import Dropping, Solved
from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Loaded
from foveate.ask.prefix import Prefix
from foveate.ask.prompt import is_vision
from foveate.ask.stored import fingerprint, read
from foveate.ask.wording import Wording
from foveate.errors import FoveateError, InputError
from foveate.methods.base import Method
from foveate.methods.catalogue import from_dict
from foveate.methods.named import Named
from foveate.registry import family_for

__all__ = ["load_prefix"]


def load_prefix(
    path: str | Path,
    vlm: Loaded,
    *,
    method: str | Method | Named | None = None,
    tokens: float | None = None,
    retention: float | None = None,
) -> Prefix:
    """Load what `Prefix.save` wrote, for the same model; the answers are bit for bit those before.

    It has no pictures, so what was kept cannot be drawn on them.

    Args:
        path: The file.
        vlm: The model that looked, or the same one loaded again.
        method, tokens, retention: With them a file is refused that was looked at in another way.

    Raises:
        InputError: If it is no such file, is damaged, or is another version's, model's or method's.
    """
    path = Path(path)
    stored = read(path)
    model = vlm.model
    about = stored.about
    if stored.made_of != fingerprint(model):
        raise InputError(
            f"{named(path)} is of another model than {vlm.name}: {about.get('model')}, other weights of it, or another "
            "dtype. Load that model, or look again."
        )
    try:
        kept = None if about["method"] is None else from_dict(about["method"])
        look = stored.look(family_for(model))
        turns = [(role, tuple(map(tuple, parts))) for role, parts in about["turns"]]
        solved = Solved(kept, about["asked"])
        wording = Wording(**about["wording"])
    except (FoveateError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{named(path)} does not hold a prefix of {vlm.name}: {error}") from error
    if method is not None:
        vision = int(is_vision(model.config, look.ids).sum())
        wanted = Dropping(method, tokens, retention).solved(vlm, vision).method
        if wanted != kept:
            raise InputError(f"{named(path)} was looked at with {kept or 'no method'}, not with {wanted}. Look again.")
    return Prefix(vlm, look, wording, Conversation(tuple(turns)), notes=about["notes"], solved=solved)
