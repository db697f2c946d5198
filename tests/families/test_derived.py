"""The derived family, on models that have no family written by hand."""

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

import foveate as fv
from foveate.families.derived import Derived
from foveate.families.proved import UNSERVED
from foveate.methods.visiondrop import VisionDrop
from foveate.registry import family_for
from tests import oracle
from tests.tiny_derived import IMAGE, TEXT, VOCABULARY, make

CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def generate(model, inputs):
    """Greedy tokens and logits, without placeholders among the new ones."""
    return model.generate(
        **inputs, do_sample=False, max_new_tokens=6, bad_words_ids=[[token] for token in BANNED],
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip


BANNED = list(range(90, VOCABULARY))
METHOD = VisionDrop(dominant=0, contextual=0, layer_list=(2, 3), image_token_list=((12, 4), (5, 2)), reference=25)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_that_merge_between_layers_and_are_numbered_anew_are_the_recompute(attention, monkeypatch):
    model, case = make("deepseek_vl", attention)
    inputs = case.batch(model, ["tit"])
    tokens = int((inputs["input_ids"] == IMAGE).sum())
    monkeypatch.setattr(oracle, "visible", lambda *args: args[2][:, None] >= args[2])
    with fv.drop(model, METHOD) as trace:
        out = generate(model, inputs)
    counts = lambda pair: lambda _: tuple(int(n * tokens / 25 + 0.5) for n in pair)  # noqa: E731
    pairs = zip(METHOD.layer_list, METHOD.image_token_list, strict=True)
    cuts = {layer: oracle.vision_decides(counts(pair), METHOD.merge) for layer, pair in pairs}
    logits, kept = oracle.recomputed(model, inputs, out, cuts, BANNED, reindex=True)
    torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
    assert kept == {stage.layer: stage.origin[0].tolist() for stage in trace.stages}
    assert min(trace.latest.per_layer)[0] < tokens


def test_a_picture_is_a_run_of_placeholders_whatever_its_tiles():
    model, case = make("aya_vision")
    with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,), scope="image")) as trace:
        generate(model, case.batch(model, ["titit", "tit"]))  # three tiles, and one
    assert trace.vision_tokens == [16, 12]
    assert trace.stages[0].after == (8, 6)


# What is said.


def test_an_encoder_decoder_has_nothing_to_drop():
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(CONFIG_MAPPING["florence2"]())
    with pytest.raises(fv.UnsupportedError, match="is an encoder-decoder"):
        Derived(model)


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPModel", "SiglipModel"])
def test_a_tower_is_no_model_that_answers(kind):
    with torch.device("meta"):
        model = getattr(transformers, kind)(getattr(transformers, kind.replace("Model", "Config"))())
    with pytest.raises(fv.UnsupportedError, match="pictures"):
        family_for(model)


def test_a_model_of_text_has_no_vision_tokens():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    with pytest.raises(fv.UnsupportedError, match="pictures"):
        family_for(model)


@pytest.mark.parametrize("kind", [kind for kind in UNSERVED if kind in CONFIG_MAPPING])
def test_models_that_no_family_can_serve_are_refused_with_the_reason(kind):
    class Model:
        config = CONFIG_MAPPING[kind]

    with pytest.raises(fv.UnsupportedError, match=f"{kind!r}.*Supported: .*cannot be served: {UNSERVED[kind]}"):
        family_for(Model())
