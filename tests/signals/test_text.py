"""`Text`: the rows of the text behind each image as they enter a layer, sample by sample."""

import pytest
import torch

import foveate as fv
from foveate.contract import Hidden, LayerStage, Resource, Shape, Text
from foveate.core.cut import Cut
from foveate.errors import SettingError, UnsupportedError
from tests.models import FAMILIES, PROMPTS, batch, is_vision, tiny
from tests.signals import assert_samples_keep_what_they_keep_alone, handed

SEEN = []


class Words(fv.Method):
    """Notes the text at two layers, for each image and for the sample; drops nothing."""

    name = "words"

    def stages(self, shape):
        reads = (Hidden(), Text())
        return tuple(
            LayerStage(layer, reads=reads, choose=note, unit=unit) for layer in (0, 3) for unit in ("image", "sample")
        )


def note(view, _):
    SEEN.append((len(view), view.text))


def text_of(inputs, entered):
    """The text behind each image of a sample, and behind the last, as it entered two layers."""
    vision = is_vision(inputs["input_ids"][0])
    columns = torch.arange(len(vision))
    last = columns[vision][-1]
    return [rows[~vision & (columns > last)] for rows in entered]


@pytest.mark.parametrize(("family", "word"), PROMPTS)
def test_the_text_behind_the_last_image_is_what_enters_the_layer(family, word):
    model, inputs = tiny(family), batch(family, [word])
    layers = [model.get_decoder().layers[index] for index in (0, 3)]
    SEEN.clear()
    with fv.drop(model, Words()), handed(*layers) as calls, torch.no_grad():
        model(**inputs)
    entered = [calls[layer][0][0][0] for layer in layers]
    whole = max(count for count, _ in SEEN)
    of_samples = [text for count, text in SEEN if count == whole]
    for words, wanted in zip(of_samples, text_of(inputs, entered), strict=True):
        assert torch.equal(words, wanted)
    # The first image has more behind it.
    assert all(len(SEEN[place][1]) > len(of_samples[0]) for place in (0, len(SEEN) // 2))


class Stretched(fv.Method):
    """Keeps as many tokens as there are words: by their likeness to the first."""

    name = "stretched"

    def stages(self, shape):
        return (LayerStage(0, reads=(Hidden(), Text()), keep=0.3, score=first_word, unit="image"),)


def first_word(view):
    return view.hidden.float() @ view.text[0].float() * len(view.text)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_with_more_or_less_text_are_each_as_alone(family):
    assert_samples_keep_what_they_keep_alone(family, Stretched(), ("tit", "titt", "ttit", "titit", "tit"))


def reading(place, *signals):
    class Reads(fv.Method):
        name = "reads"

        def stages(self, shape):
            return (place(reads=signals, choose=lambda view, count: Cut.stay(len(view))),)

    return Reads()


def test_what_is_not_there_is_refused():
    def before_the_decoder(**settings):
        return fv.contract.stages.ImageStage(**settings)

    for signal in (Text(), Resource("clip", of="text")):
        with pytest.raises(UnsupportedError, match="LayerStage"):
            fv.apply(tiny("llava"), reading(before_the_decoder, signal))
    with pytest.raises(UnsupportedError, match="ImageStage"):
        fv.apply(tiny("llava"), reading(lambda **settings: LayerStage(1, **settings), Resource("clip")))
    missing = reading(before_the_decoder, Resource("clip"))
    with pytest.raises(SettingError, match="clip"):
        fv.apply(tiny("llava"), missing)
    assert Shape(4).resources == frozenset()
