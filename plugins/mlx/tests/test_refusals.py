"""What cannot work is refused by name, before anything is computed wrongly."""

import mlx.core as mx
import pytest
from mlx_vlm.models.base import InputEmbeddingsFeatures

import foveate_mlx
from foveate.errors import SessionError, SettingError, UnknownNameError, UnsupportedError
from foveate_mlx import host
from tests import models


def embed(model, prompt):
    ids, pixels, inputs = prompt
    return model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("v2drop", "layer"),
        ("fastv", "layer"),
        ("random", "layer"),
        ("visionzip", "tower"),
        ("tome", "tower"),
        ("resize", "tower"),
        ("mmtok", "tower"),  # reads LLaVA's tower, whose features come before the projector
        ("hawk", "layer"),
        ("vidcom2", "reindex"),
        ("divprune:positions=keep", "reindex"),
        ("finalkv", "layer"),
    ],
)
def test_methods_that_need_more_than_rows_and_the_question_are_refused(method, reason):
    with pytest.raises(UnsupportedError, match=reason), foveate_mlx.drop(models.llava(), method):
        pass


def test_wrong_use_says_what_is_wrong():
    model = models.llava()
    for error, options in (
        (UnknownNameError, {"method": "divprun"}),
        (SettingError, {"method": "divprune", "tokens": 4, "retention": 0.5}),
        (SettingError, {"method": "divprune", "tokens": 0}),
        (SettingError, {"method": "divprune", "retention": 1.5}),
        (SettingError, {"method": "divprune:tokens=4", "tokens": 4}),
    ):
        with pytest.raises(error), foveate_mlx.drop(model, **options):
            pass
    assert "get_input_embeddings" not in vars(model)


def test_a_session_that_saw_no_vision_row_says_so():
    model = models.llava()
    with pytest.raises(SessionError, match="nothing"), foveate_mlx.drop(model, "divprune"):
        embed(model, (mx.array([[1, 5, 7]]), None, {}))
    with pytest.raises(ValueError, match="mine"), foveate_mlx.drop(model, "divprune"):
        raise ValueError("mine")


def test_pictures_without_a_known_placeholder_are_refused():
    model, (ids, pixels, _) = models.llava(), models.inputs_of(models.llava)
    with foveate_mlx.drop(model, "divprune") as trace:
        embed(model, (ids, pixels, {}))
        model.get_input_embeddings = model.get_input_embeddings  # keeps the wrapper
        with pytest.raises(UnsupportedError, match="picture"):
            model.get_input_embeddings(mx.array([[1, 5, 7]]), None, cached_image_features=pixels)
    assert trace.kept == [5]


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_a_number_of_tokens_is_refused_where_runs_may_be_tiles(name):
    model = getattr(models, name)()
    prompt = models.inputs_of(getattr(models, name))
    with foveate_mlx.drop(model, "divprune", tokens=4) as trace:
        with pytest.raises(UnsupportedError, match="retention"):
            embed(model, prompt)
        trace.tokens.append(0)
    with foveate_mlx.drop(model, "divprune", retention=0.25) as trace:
        embed(model, prompt)
    assert trace.kept == [4, 4]


def returning(model, **fields):
    """Let a model return more fields of the decoder's input."""
    stock = type(model).get_input_embeddings

    def made(self, *args, **kwargs):
        features = stock(self, *args, **kwargs)
        for name, value in fields.items():
            setattr(features, name, value)
        return features

    model.__class__ = type("Changed", (type(model),), {"get_input_embeddings": made, "__module__": __name__})
    return model


@pytest.mark.parametrize("name", ["pos_hw", "cross_attention_states", "of_a_later_version"])
def test_a_field_that_is_not_known_is_refused(name):
    model = returning(models.llava(), **{name: mx.zeros((1, 20))})
    with foveate_mlx.drop(model, "divprune") as trace:
        with pytest.raises(UnsupportedError, match=name):
            embed(model, models.inputs_of(models.llava))
        assert trace.tokens


def test_fields_with_columns_are_shortened_on_every_axis():
    extra = {
        "attention_mask_4d": mx.arange(20 * 20).reshape(1, 1, 20, 20),
        "per_layer_inputs": mx.arange(40).reshape(1, 20, 2),
        "attention_mask": mx.ones((1, 1)),  # one for all columns
    }
    model = returning(models.llava(), **extra)
    with foveate_mlx.drop(model, "divprune", tokens=4) as trace:
        less = embed(model, models.inputs_of(models.llava))
    columns = mx.array([0, 1, *(trace.sources[0] + 2).tolist(), 18, 19])
    assert mx.array_equal(less.attention_mask_4d[0, 0], extra["attention_mask_4d"][0, 0][columns][:, columns])
    assert mx.array_equal(less.per_layer_inputs, extra["per_layer_inputs"][:, columns])
    assert less.attention_mask.shape == (1, 1)


def test_hidden_positions_are_refused():
    model = models.qwen2_vl()
    model = returning(model, position_ids=None)
    with foveate_mlx.drop(model, "divprune") as trace:
        with pytest.raises(UnsupportedError, match="position"):
            embed(model, models.inputs_of(models.qwen2_vl))
        trace.tokens.append(0)
    model = models.llava()
    stock = type(model).get_input_embeddings

    def hiding(self, *args, **kwargs):
        self.language_model._position_ids = mx.arange(20)
        return stock(self, *args, **kwargs)

    model.__class__ = type("Hiding", (type(model),), {"get_input_embeddings": hiding})
    with foveate_mlx.drop(model, "divprune") as trace:
        with pytest.raises(UnsupportedError, match="position"):
            embed(model, models.inputs_of(models.llava))
        trace.tokens.append(0)


def test_token_types_that_a_decoder_reads_are_refused(monkeypatch):
    from mlx_vlm.models.gemma4 import language

    decoder = type("Reads", (), {"__module__": language.__name__})()
    features = InputEmbeddingsFeatures(mx.zeros((1, 2, 3)))
    monkeypatch.setattr(host.inspect, "getfile", lambda kind: language.__file__)
    host.refuse_hidden(decoder, None, features, {})
    with pytest.raises(UnsupportedError, match="token_type_ids"):
        host.refuse_hidden(decoder, None, features, {"mm_token_type_ids": mx.zeros((1, 2))})


def test_rows_that_are_not_those_of_the_prompt_are_refused():
    model = returning(models.llava(), inputs_embeds=mx.zeros((1, 30, 32)))
    with foveate_mlx.drop(model, "divprune") as trace:
        with pytest.raises(UnsupportedError, match="rows"):
            embed(model, models.inputs_of(models.llava))
        trace.tokens.append(0)


def test_an_untried_mlx_vlm_needs_a_check_and_a_changed_one_is_refused(monkeypatch):
    model = models.llava()
    stock = host.version
    later = f"{stock('mlx-vlm')[:4]}99"
    monkeypatch.setattr(host, "version", lambda name: later if name == "mlx-vlm" else stock(name))
    with pytest.raises(UnsupportedError, match="check"), foveate_mlx.drop(model, "divprune"):
        pass
    host.CHECKS.note(host.conditions(model.config))
    with foveate_mlx.drop(model, "divprune"):
        embed(model, models.inputs_of(models.llava))
    other = models.qwen2_vl()
    with pytest.raises(UnsupportedError, match="check"), foveate_mlx.drop(other, "divprune"):
        pass
    monkeypatch.setattr(host, "NAMES", (*host.NAMES, ("mlx_vlm.utils", "of_a_later_version")))
    with pytest.raises(UnsupportedError, match="of_a_later_version"), foveate_mlx.drop(model, "divprune"):
        pass
