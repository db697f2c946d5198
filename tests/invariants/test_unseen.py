"""Invariant: pictures that come past `get_*_features` are refused, and text never is. A session that drops shows it."""

import pytest
import torch
from torch import nn
from transformers import ColQwen2Config, ColQwen2ForRetrieval, DynamicCache, LlavaForConditionalGeneration

import foveate as fv
from foveate._transformers import with_cache
from foveate.registry import family_for
from foveate.testing.models import tiny_model
from tests.models import FAMILIES, IMAGE, TINY, batch, generate, tiny

METHODS = (fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5)), fv.DivPrune(retention=1 / 3))
METHOD = METHODS[0]


def run(model, call, method=METHOD, says=None):
    """Call in an open context. `says` is a word of the error; None: there is none, and no vision token is counted."""
    with torch.no_grad(), fv.drop(model, method) as trace:
        if says is None:
            call()
            assert not any(any(record.vision_tokens) for record in trace.history)
        else:
            with pytest.raises(fv.UnsupportedError, match=says):
                call()


def entering(model, inputs):
    """The rows that enter the decoder without a context, pictures and all."""
    rows = []

    def note(_, args, kwargs):
        rows.append(kwargs["inputs_embeds"].clone())

    hook = family_for(model).text.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return rows[0]


# -- embeddings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=["v2drop", "divprune"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_in_embeddings_are_refused_and_text_is_not(family, method):
    model, inputs, text = tiny(family), batch(family, ["tit", "titt"]), batch(family, ["tt", "ttt"])
    rows, mask = entering(model, inputs), inputs["attention_mask"]
    words, live = model.get_input_embeddings()(text["input_ids"]), text["attention_mask"]
    decoder = family_for(model).text
    run(model, lambda: decoder(inputs_embeds=rows, attention_mask=mask), method, "no token")
    run(model, lambda: decoder(inputs_embeds=words, attention_mask=live), method)
    run(model, lambda: generate(model, text), method)
    if family != "gemma4":  # it needs ids beside embeddings, or looks them up among all tokens
        run(model, lambda: model(inputs_embeds=rows, attention_mask=mask), method, "no token")
        run(model, lambda: model(inputs_embeds=words, attention_mask=live), method)


def test_embeddings_of_text_that_are_padded_with_anything_are_text():
    model, text = tiny("llava"), batch("llava", ["t", "ttt"])
    words = model.get_input_embeddings()(text["input_ids"]).masked_fill(text["attention_mask"][..., None] == 0, 7.0)
    run(model, lambda: model(inputs_embeds=words, attention_mask=text["attention_mask"]))


@pytest.mark.parametrize("ids", [True, False])
def test_embeddings_that_generate_feeds_are_looked_at_too(ids):
    model, inputs, text = tiny("llava"), batch("llava", ["titt"]), batch("llava", ["tt"])
    rows, words = entering(model, inputs), model.get_input_embeddings()(text["input_ids"])
    more = [{"input_ids": prompt["input_ids"]} if ids else {} for prompt in (inputs, text)]
    mask = inputs["attention_mask"]
    run(model, lambda: generate(model, {"inputs_embeds": rows, "attention_mask": mask, **more[0]}), says="no token")
    run(model, lambda: generate(model, {"inputs_embeds": words, "attention_mask": text["attention_mask"], **more[1]}))


def test_a_picture_in_the_embeddings_of_a_later_turn_is_refused():
    model, text = tiny("llava"), batch("llava", ["ttt"])
    rows = entering(model, batch("llava", ["it"]))
    cache = with_cache(DynamicCache(config=model.config.get_text_config()))
    run(model, lambda: (model(**text, **cache), model(**text, **cache, use_cache=True)))
    run(model, lambda: model(inputs_embeds=rows, **cache), says="no token")


def test_features_that_were_made_inside_the_context_are_refused_where_somebody_else_merges_them():
    model, inputs = tiny("llava"), batch("llava", ["tit"])

    def merge():
        rows = model.get_input_embeddings()(inputs["input_ids"]).clone()
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        rows[inputs["input_ids"] == IMAGE] = torch.cat(tuple(features))
        return model.model(inputs_embeds=rows)

    run(model, merge, says="no token")


def test_embeddings_beside_pixels_are_served():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    rows = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad(), fv.drop(model, METHOD) as trace:
        model(inputs_embeds=rows, pixel_values=inputs["pixel_values"])
    assert trace.vision_tokens == [25]
    assert max(trace.retention) < 1


# -- wrappers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def retriever():
    """A model that merges pictures itself, a batch of pages for it, and a query."""
    qwen = tiny_model("qwen2_vl")
    torch.manual_seed(0)
    model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=qwen.model.config.to_dict(), embedding_dim=8)).eval()
    pages, query = qwen.inputs("tit", "titt"), qwen.inputs("tt", "ttt")
    for inputs in (pages, query):
        del inputs["mm_token_type_ids"]
    pages["pixel_values"] = pages["pixel_values"].unflatten(0, (2, -1))
    return model, pages, query


@pytest.mark.parametrize("method", METHODS, ids=["v2drop", "divprune"])
def test_pages_are_refused_for_the_inner_model_alone_and_queries_are_not(retriever, method):
    model, pages, query = retriever
    run(model.vlm, lambda: model(**pages), method, "ran outside")
    run(model.vlm, lambda: model(**query), method)
    with torch.no_grad(), fv.drop(model.vlm, method) as trace:
        with pytest.raises(fv.UnsupportedError, match="ran outside"):
            model(**pages)
        model(**query)  # it is over with the refused call
    assert trace.retention == [1.0, 1.0]


class Around(nn.Module):
    """Encodes pictures for a model that it holds, and puts them among the embeddings, or where these are made."""

    def __init__(self, model, by_hook):
        super().__init__()
        self.vlm, self.by_hook = model, by_hook

    def encode(self, pixels):
        core = self.vlm.model
        states = core.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        return core.multi_modal_projector(states).flatten(0, 1)

    def forward(self, input_ids, pixels, **more):
        features = self.encode(pixels)
        embedding = self.vlm.get_input_embeddings()

        def merge(_, args, rows):
            return rows.masked_scatter((input_ids == IMAGE)[..., None], features)

        hook = embedding.register_forward_hook(merge)
        try:
            if self.by_hook:
                return self.vlm(input_ids=input_ids, **more)
            rows = embedding(input_ids)
        finally:
            hook.remove()
        return self.vlm(inputs_embeds=rows, **more)


@pytest.mark.parametrize("by_hook", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=["v2drop", "divprune"])
def test_a_module_that_runs_the_tower_itself_is_refused(method, by_hook):
    around, inputs = Around(tiny("llava"), by_hook), batch("llava", ["tit"])
    run(around, lambda: around(inputs["input_ids"], inputs["pixel_values"]), method, "ran outside")
    with torch.no_grad(), fv.drop(around, method) as trace:
        around.vlm(**inputs)
    assert max(trace.retention) < 1


class Cropping(LlavaForConditionalGeneration):
    """Takes pixels by another name, and has a tower of its own."""

    def forward(self, input_ids=None, pixel_values_crops=None, **more):
        if pixel_values_crops is None:
            return super().forward(input_ids=input_ids, **more)
        features = pixel_values_crops.flatten(2).mean(1)[:, : 25 * self.config.text_config.hidden_size]

        def merge(_, args, rows):
            return rows.masked_scatter((input_ids == IMAGE)[..., None], features)

        hook = self.get_input_embeddings().register_forward_hook(merge)
        try:
            return super().forward(input_ids=input_ids, **more)
        finally:
            hook.remove()


def test_pixels_by_another_name_are_refused_where_nothing_is_seen_of_them():
    model, inputs, text = Cropping(TINY["llava"].config()).eval(), batch("llava", ["tit"]), batch("llava", ["ttt"])
    run(model, lambda: model(inputs["input_ids"], inputs["pixel_values"]), says="pixel_values_crops")
    run(model, lambda: model(input_ids=inputs["input_ids"], pixel_values_crops=inputs["pixel_values"]), says="crops")
    run(model, lambda: model(**text))
    with torch.no_grad(), fv.drop(model, METHOD) as trace:
        model(**inputs)
    assert max(trace.retention) < 1


# -- text ----------------------------------------------------------------------------------------------------------


def test_a_tower_whose_call_failed_and_a_picture_that_failed_do_not_hold_up_text():
    model, inputs, text = tiny("llava"), batch("llava", ["tit"]), batch("llava", ["ttt"])
    with torch.no_grad(), fv.drop(model, METHOD):
        with pytest.raises(ValueError, match="tokens"):
            model(**text, pixel_values=inputs["pixel_values"])
        model(**text)
        with pytest.raises(RuntimeError):
            model.model.vision_tower(inputs["pixel_values"][:, :1])
        model(**text)


def test_a_context_that_only_records_graphs_takes_anything():
    """A method without stages drops nothing, so nothing can be missed."""

    class Nothing(fv.Method):
        name = "nothing"

        def stages(self, shape):
            return ()

    model = tiny("llava")
    rows = entering(model, batch("llava", ["tit"]))
    run(model, lambda: model(inputs_embeds=rows), Nothing())
