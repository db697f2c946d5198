"""Every type of transformers that reads pictures is served by hand, proved, or refused with a reason."""

import transformers
from packaging.version import Version
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from foveate.families.proved import PROVED, UNSERVED
from foveate.registry import families
from tests.tiny_derived import CASES, kind_of

# Of the decoders in the mapping, "mistral4" is no type of a whole model: that is "mistral3".
OF_PICTURES = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "phi4_multimodal"} - {"mistral4"}


def test_each_type_is_served_proved_or_refused():
    left = OF_PICTURES - {*families(), *PROVED, *UNSERVED}
    assert not left, (
        f"transformers {transformers.__version__} has types that foveate does not speak of: {sorted(left)}. Give each "
        "a case in tests/tiny_derived.py and a line in families/proved.py, or a reason in families/proved.py."
    )


def test_what_is_proved_is_tested():
    assert {kind_of(name) for name in CASES} - {*families()} == {*PROVED}


def test_what_is_proved_is_in_transformers():
    current = Version(transformers.__version__)
    assert {kind for kind, one in PROVED.items() if Version(one.since) <= current} <= OF_PICTURES
    assert all(one.title and one.since in ("5.16.1", "5.23", "5.24") for one in PROVED.values())
