"""What the guide to new families says to override: each is read, so two values of it behave differently."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import foveate as fv
from foveate import registry
from foveate.ask.look import can_share, end_of_pictures
from foveate.cli.catalogue import family_rows
from foveate.contract import Cut, ImageStage, Method, PatchStage, ThinStage, TowerKeys
from foveate.engine.media_tokens import image_lengths
from foveate.families.base import Family
from foveate.families.llava import Llava
from foveate.families.support import reach
from foveate.families.tower import TowerLayout
from foveate.families.vision import PictureLayout
from tests.models import batch, tiny

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "new-family.md"


class Seeing(Method):
    """Notes what a stage before the decoder sees."""

    name = "seeing"
    what: str

    def stages(self, shape):
        stages = {
            "pixels": PatchStage(
                choose=lambda view, _: Cut.stay(len(self.note(tuple(view.units.shape[1:3]), len(view))))
            ),
            "rows": ThinStage(keep=0.5, at=0.5, score=lambda view: self.note(view.grid, len(view))),
            "keys": ImageStage(
                reads=(TowerKeys(),), keep=0.5, score=lambda view: self.note(bool(view.keys.any()), len(view))
            ),
        }
        return (stages[self.what],)

    def note(self, value, tokens):
        SEEN.append(value)
        return torch.arange(tokens).float()


SEEN = []
DEEP = fv.V2Drop(layers=(4,), keep=(0.5,))
ONE = fv.V2Drop(tokens=3, layers=(3,))
KEEP = "as it is"


def dropped(method, of=str):
    """What the trace of a forward shows, or why the method is refused."""
    model = tiny("llava")
    try:
        with fv.drop(model, method) as trace, torch.no_grad():
            model(**batch("llava", ["tit"]))
        return of(trace)
    except fv.FoveateError as error:
        return str(error)


def attached(method):
    """Whether dropping begins, before any picture was seen."""
    with fv.drop(tiny("llava"), method):
        return True


def seen(what):
    """What a stage of `Seeing` saw first, or why it did not run."""
    SEEN.clear()
    refusal = dropped(Seeing(what=what))
    return (*SEEN, refusal)[0]


def family():
    return registry.family_for(tiny("llava"))


def parts():
    return family().tower_parts("image", lambda: None, batch("llava", ["tit"]))


def tower_flops():
    return fv.cost(tiny("llava").config, text_tokens=4, vision_tokens=25).tower_flops


def refuse(self, *_, **__):
    raise fv.UnsupportedError("mine")


ids = torch.tensor([91, 91, 5, 6, 7])  # an image, and its end
NO_ENCODER = {"encode": Family.encode, "encode_smaller": Family.encode_smaller}
READ = {
    "model_type": (lambda: "mine" in fv.families(), ["llava", "mine"], [False, True]),
    "title": (lambda: [row["title"] for row in family_rows() if row["model_type"] == "llava"],
        ["One", "Two"], [["One"], ["Two"]]),
    "decoder": (lambda: type(family().text).__name__,
        ["language_model", "vision_tower"], ["LlamaModel", "CLIPVisionModel"]),
    "mergers": (lambda: family().merger,
        [("nothing", "get_placeholder_mask"), ("get_image_features",)], ["get_placeholder_mask", "get_image_features"]),
    "find_core": (lambda: family().core is tiny("llava").model,
        [KEEP, lambda self: tiny("llava").model.vision_tower], [True, False]),
    "text": (lambda: len(family().layers), [KEEP, property(lambda self: SimpleNamespace(layers=[1, 2]))], [6, 2]),
    "layers": (lambda: "layers 0 to 1" in dropped(DEEP),
        [KEEP, property(lambda self: self.text.layers[:2])], [False, True]),
    "vision_masks": (lambda: dropped(DEEP),
        [KEEP, lambda self, *_: []], ["25 to 12", "The model encoded pictures but did not report"]),
    "tiled": (lambda: image_lengths(family(), "image", ids[None] == 91, ids[None]), [False, True], [None, [[2]]]),
    "image_lengths": (lambda: image_lengths(family(), "image", ids[None] == 91, ids[None]),
        [lambda *_: [[2]], lambda *_: [[1, 1]]], [[[2]], [[1, 1]]]),
    "pictures": (lambda: dropped(DEEP, lambda trace: trace.latest.boxes[0][0][1].tolist()),
        [KEEP, classmethod(lambda *_: [PictureLayout(((1, 25),))])],
        [pytest.approx([0.2, 0, 0.4, 0.2]), pytest.approx([0.04, 0, 0.08, 1])]),
    "keeps_beside": (lambda: dropped(fv.Uniform(layers=(4,), keep=(0.5,)), lambda trace: trace.stages[0].after[0]),
        [False, True], [12, 13]),
    "tower_blocks": (lambda: len(parts().blocks), ["encoder.layers", "encoder.mine"], [3, "has no encoder.mine"]),
    "tower_attention": (lambda: type(parts().attentions[0]).__name__,
        ["self_attn", "mlp"], ["CLIPAttention", "CLIPMLP"]),
    "tower_layout": (lambda: seen("rows"), [KEEP, lambda *_: TowerLayout(None, [None], cls=1)], [(5, 5), None]),
    "needs_all_rows": (lambda: dropped(Seeing(what="rows")), [None, "it is mine"], ["Trace", "it is mine"]),
    "encode_subset": (lambda: seen("pixels"), [KEEP, refuse], [(5, 5), "mine"]),
    "block": (lambda: seen("pixels"), [KEEP, classmethod(lambda *_: 5)], [(5, 5), (1, 1)]),
    "encode": (lambda: seen("keys"), [KEEP, refuse], [True, "mine"]),
    "token_means": (
        lambda: isinstance(reach(Seeing(what="keys"), registry.family_kind("llava"), tiny("llava").config), list),
        [KEEP, lambda *_: torch.ones(25, 1)], [False, True]),
    "keys_of": (lambda: seen("keys"), [None, ("k_proj", lambda attention, output: output[:, None] * 0)], [True, False]),
    "fixed_count": (lambda: attached(ONE), [KEEP, classmethod(lambda *_: None)], ["3 of 25", True]),
    "shares_prefix": (lambda: can_share(tiny("llava"), None), [True, False], [True, False]),
    "closing_tokens": (lambda: end_of_pictures(tiny("llava"), ids), [0, 1], [2, 3]),
}  # fmt: skip
"""What shows the attribute on a tiny LLaVA-1.5, two values of it, and what each must show: a part of a message."""
BESIDE = {
    "image_lengths": {"tiled": True},
    "tiled": {"image_lengths": lambda *_: [[2]]},
    "token_means": NO_ENCODER,
    "keeps_beside": {"pictures": classmethod(lambda *_: [PictureLayout(((4, 6),), beside=(24,))])},
}
FLOPS = fv.cost(tiny("llava").config, text_tokens=4, vision_tokens=25).tower_flops


@pytest.mark.parametrize("count", [1, 3])
def test_the_images_of_a_picture_are_counted(count, monkeypatch):
    pictures = classmethod(lambda *_: [PictureLayout(images=count)])
    monkeypatch.setitem(registry._extra_families, "llava", type("Own", (Llava,), {"pictures": pictures}))
    assert tower_flops() == count * FLOPS


def test_a_family_of_an_earlier_foveate_is_told_what_to_override():
    with pytest.raises(fv.SettingError, match="PictureLayout"):
        type("Old", (Llava,), {"boxes": classmethod(lambda *_: [None])})


@pytest.mark.parametrize("name", READ)
def test_two_values_of_what_a_family_overrides_behave_differently(name, monkeypatch):
    show, values, wanted = READ[name]
    names = []
    for value in values:
        attributes = BESIDE.get(name, {}) | ({} if value is KEEP else {name: value})
        kind = type("Own", (Llava,), attributes)
        monkeypatch.setitem(registry._extra_families, kind.model_type, kind)
        try:
            names.append(show())
        except fv.FoveateError as error:
            names.append(str(error))
    for value, part in zip(names, wanted, strict=True):
        assert value == part or (isinstance(part, str) and part in str(value))
    assert names[0] != names[1]


def test_every_override_that_the_guide_names_is_driven_here():
    names = set(re.findall(r"`(\w+)(?: = [^`]*)?`", GUIDE.read_text())) & set(dir(Family)) | {"model_type"}
    assert names <= {*READ}
    assert len(names) > 20
