"""Retrieval models: the vectors of pages are those of the rows that are left."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import (
    ColPaliConfig,
    ColPaliForRetrieval,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    Gemma3ForSequenceClassification,
    PaliGemmaConfig,
)

import foveate as fv
from foveate.testing.models import tiny_model
from tests.models import batch, config_of, tiny

pytestmark = pytest.mark.filterwarnings("ignore:The last layer has:UserWarning")
IMAGE = 91
TEXT = {
    "model_type": "gemma", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "patch_size": 14, "image_size": 70, "projection_dim": 32, "vision_use_head": False,
}  # fmt: skip
METHODS = ("divprune", "tome", "visionzip", "v2drop")


@pytest.fixture(scope="module")
def qwen():
    """A ColQwen2 with random weights, and two pages whose prompts differ in length."""
    small = tiny_model("qwen2_vl")
    torch.manual_seed(0)
    model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=small.model.config.to_dict(), embedding_dim=8)).eval()
    pages = small.inputs("tit", "titt")
    del pages["mm_token_type_ids"]
    pages["pixel_values"] = pages["pixel_values"].unflatten(0, (2, -1))
    return model, pages


@pytest.fixture(scope="module")
def pali():
    """A ColPali with random weights, and a page."""
    tiny("paligemma")  # skips where it is not served
    config = PaliGemmaConfig(
        text_config=TEXT, vision_config=TOWER, image_token_index=IMAGE, image_token_id=IMAGE, vocab_size=96,
        projection_dim=32, hidden_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ColPaliForRetrieval(ColPaliConfig(vlm_config=config, embedding_dim=8)).eval()
    ids = torch.tensor([[IMAGE] * 25 + [1, 5, 6, 7]])
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 70, 70)}


def vectors(model, pages):
    with torch.no_grad():
        return model(**pages).embeddings


@pytest.mark.parametrize("name", ["qwen", "pali"])
def test_without_dropping_the_vectors_are_the_untouched_models(name, request):
    model, pages = request.getfixturevalue(name)
    live = pages["attention_mask"].bool()
    whole = vectors(model, pages)[live]
    with fv.drop(model, fv.DivPrune(keep=1.0)) as trace:
        assert torch.equal(vectors(model, pages)[live], whole)
    assert trace.retention == [1.0] * len(live)
    assert torch.equal(vectors(model, pages)[live], whole)


def test_pages_of_two_sizes_are_read_without_the_padding_of_the_smaller(qwen):
    model, pages = qwen
    ids, grids = pages["input_ids"].clone(), torch.tensor([[1, 6, 8], [1, 4, 6]])  # 12 and 6 tokens a page
    ids[1, (ids[1] == IMAGE).nonzero()[6:, 0]] = 57
    mixed = {**pages, "input_ids": ids, "image_grid_thw": grids}
    live = mixed["attention_mask"].bool()
    whole = vectors(model, mixed)[live]
    with fv.drop(model, fv.DivPrune(keep=1.0)) as trace:
        assert torch.equal(vectors(model, mixed)[live], whole)
    assert trace.vision_tokens == [12, 6]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["qwen", "pali"])
def test_marked_rows_are_the_vectors_of_what_is_left(name, method, request):
    model, pages = request.getfixturevalue(name)
    with fv.drop(model, method, retention=1 / 3) as trace:
        left = vectors(model, pages)[trace.pooling_mask.bool()]
    text = (pages["attention_mask"].bool() & (pages["input_ids"] != IMAGE)).sum()
    assert len(left) == text + sum(trace.cuts[-1].after)
    assert not left.isnan().any()
    assert sum(trace.cuts[-1].after) < sum(trace.vision_tokens)


def test_a_call_that_failed_leaves_no_page_behind(qwen):
    model, pages = qwen
    words = {name: pages[name][:, -2:] for name in ("input_ids", "attention_mask")}
    with fv.drop(model, "divprune") as trace:
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            vectors(model, {**pages, "attention_mask": pages["attention_mask"][:, :3]})
        with torch.no_grad():
            model.vlm(**words)
    assert trace.vision_tokens == [0, 0]


# -- colpali-engine ------------------------------------------------------------------------------------------------


def engine(name, file):
    """A class of colpali-engine, from its own file: its processors need torchvision."""
    spec = importlib.util.find_spec("colpali_engine")
    if spec is None:
        pytest.skip("could not import colpali_engine")
    (folder,) = spec.submodule_search_locations
    module = importlib.util.spec_from_file_location(name, Path(folder, "models", f"{file}.py"))
    code = importlib.util.module_from_spec(module)
    module.loader.exec_module(code)
    return getattr(code, name)


def pages_of(family):
    """Two pages, as colpali-engine's processors give them."""
    pages = batch(family, ["tit", "titt"])
    if family.startswith("qwen"):
        pages["pixel_values"] = pages["pixel_values"].unflatten(0, (2, -1))
    return pages


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "file", "family"),
    [
        ("ColQwen2", "qwen2/colqwen2/modeling_colqwen2", "qwen2_vl"),
        ("ColQwen2_5", "qwen2_5/colqwen2_5/modeling_colqwen2_5", "qwen2_5_vl"),
        ("ColQwen3", "qwen3/colqwen3/modeling_colqwen3", "qwen3_vl"),
        ("ColIdefics3", "idefics3/colidefics3/modeling_colidefics3", "idefics3"),
        ("ColPali", "paligemma/colpali/modeling_colpali", "paligemma"),
    ],
    ids=lambda value: value if "/" not in value else "",
)
def test_vectors_of_colpali_engine_are_those_that_the_mask_marks(name, file, family, method):
    torch.manual_seed(0)
    model, pages = engine(name, file)(copy.deepcopy(config_of(family))).eval(), pages_of(family)
    with torch.no_grad(), fv.drop(model, method, retention=1 / 3) as trace:
        left = model(**pages)[trace.pooling_mask.bool()]
    text = (pages["attention_mask"].bool() & (pages["input_ids"] != IMAGE)).sum()
    assert len(left) == text + sum(trace.cuts[-1].after)
    assert torch.allclose(left.norm(dim=-1), torch.ones(len(left)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "family"), [("BiQwen2", "qwen2_vl"), ("BiQwen2_5", "qwen2_5_vl"), ("BiQwen3", "qwen3_vl")]
)
def test_a_vector_of_the_last_row_needs_no_mask(name, family):
    torch.manual_seed(0)
    folder = family.removesuffix("_vl")
    model = engine(name, f"{folder}/{name.lower()}/modeling_{name.lower()}")(copy.deepcopy(config_of(family))).eval()
    pages = pages_of(family)
    with torch.no_grad(), fv.drop(model, "divprune", retention=1 / 3) as trace:
        last, mean = model(**pages), model(pooling_strategy="mean", **pages)
    assert max(trace.retention) < 1
    assert torch.allclose(last.norm(dim=-1), torch.ones(2), atol=1e-4)
    assert not torch.allclose(last, mean)


# -- what reads the last row ---------------------------------------------------------------------------------------


def test_a_rerankers_logits_are_those_of_the_last_row():
    model, inputs = tiny("qwen3_vl"), batch("qwen3_vl", ["tit", "titt"])
    with torch.no_grad(), fv.drop(model, "divprune", retention=1 / 3) as trace:
        logits, rows = model(**inputs, logits_to_keep=1).logits, model.model(**inputs).last_hidden_state
        assert torch.equal(logits, model.lm_head(rows[:, -1:]))  # a row alone rounds otherwise than among others
    assert max(trace.retention) < 1


def test_a_classifier_reads_the_last_row():
    config = copy.deepcopy(config_of("gemma3"))
    config.num_labels = 2
    torch.manual_seed(0)
    model, inputs = Gemma3ForSequenceClassification(config).eval(), batch("gemma3", ["tit"])
    with torch.no_grad(), fv.drop(model, "divprune", retention=1 / 3) as trace:
        logits, rows = model(**inputs).logits, model.model(**inputs).last_hidden_state
    assert max(trace.retention) < 1
    assert torch.equal(logits, model.score(rows)[:, -1])
