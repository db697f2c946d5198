"""sentence-transformers' own pooling, scoring and processes, on pages whose tokens are dropped."""

import threading

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import foveate as fv
from foveate.embedded.scenes import scene
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.integrations.sentence_transformers import drop

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ST = pytest.importorskip("sentence_transformers", minversion="6")
VISION = 576


@pytest.fixture(scope="module")
def module():
    """sentence-transformers' module around the embedded model."""
    from sentence_transformers.base.modules import Transformer

    return Transformer(str(fv.embedded.path()))


@pytest.fixture(scope="module")
def mean(module):
    """An encoder that pools by the mean."""
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    return ST.SentenceTransformer(modules=[module, Pooling(128, "mean"), Normalize()])


@pytest.fixture(scope="module")
def vectors(module):
    """An encoder that keeps one vector for each image token of a page, as ColPali does."""
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules.multi_vector_mask import MultiVectorMask

    return ST.MultiVectorEncoder(modules=[module, Normalize(), MultiVectorMask(keep_only_token_ids=[3])])


@pytest.fixture(scope="module")
def pages():
    return [Image.fromarray(scene("held-out", index).image) for index in range(3)]


def test_a_page_has_as_many_vectors_as_tokens_are_left(vectors, pages):
    with drop(vectors, "divprune", tokens=64) as trace:
        few = vectors.encode_document(pages, batch_size=2)
    assert [page.shape for page in few] == [(64, 128)] * 3
    assert trace.vision_tokens[0] == VISION


def test_token_pooling_runs_on_the_rows_that_are_left(vectors, pages):
    from sentence_transformers.multi_vector_encoder.modules.token_pooling import HierarchicalTokenPooling

    ward = HierarchicalTokenPooling(pool_factor=3, num_protected_tokens=0)
    with drop(vectors, "divprune", tokens=192):
        (few,) = vectors.encode_document(pages[:1], token_pooling=ward)
    assert 3 < few.shape[0] <= 64


def test_a_mean_is_that_of_the_kept_rows(mean, module, pages):
    with drop(mean, "divprune", tokens=64):
        pooled = mean.encode(pages[:2], convert_to_tensor=True)
    with torch.no_grad(), fv.drop(module.model, "divprune", tokens=64) as trace:
        features = module.preprocess(pages[:2])
        inputs = {name: features[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        rows = module.model(**inputs).last_hidden_state
    for index in range(2):
        left = rows[index][trace.pooling_mask[index].bool()]
        assert torch.allclose(pooled[index], normalize(left.float().mean(dim=0), dim=0).to(pooled), atol=1e-2)
    assert not torch.allclose(pooled[0], normalize(rows[0].float().mean(dim=0), dim=0).to(pooled), atol=1e-2)


def test_queries_are_encoded_as_without_dropping(vectors):
    (whole,) = vectors.encode_query(["red star"])
    with drop(vectors, "divprune", tokens=64):
        (same,) = vectors.encode_query(["red star"])
    assert (whole == same).all()


def test_threads_encode_in_turn(vectors, pages):
    counts = {}

    def encode(tokens: int) -> None:
        counts[tokens] = vectors.encode_document(pages[:tokens])

    with drop(vectors, "divprune", tokens=64):
        threads = [threading.Thread(target=encode, args=(index,)) for index in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [page.shape for index in (1, 2) for page in counts[index]] == [(64, 128)] * 3


def test_the_trace_of_many_batches_is_bounded(vectors, pages, monkeypatch):
    monkeypatch.setattr("foveate.engine.session.LATEST", 2)
    with drop(vectors, "divprune", tokens=64) as trace:
        vectors.encode_document(pages, batch_size=1)
    assert len(trace.history) == 2


def test_the_evaluator_scores_the_rows_that_are_left(vectors, pages):
    from sentence_transformers.multi_vector_encoder.evaluation import MultiVectorInformationRetrievalEvaluator

    corpus = dict(zip("abc", pages, strict=True))
    evaluate = MultiVectorInformationRetrievalEvaluator(
        corpus, corpus, {name: {name} for name in corpus}, write_csv=False, show_progress_bar=False
    )
    with drop(vectors, "divprune", tokens=64) as trace:
        scores = evaluate(vectors)
    assert scores["maxsim_accuracy@1"] == 1.0
    assert trace.pooling_mask.sum() < VISION


def test_an_encoder_saved_inside_is_the_encoder_without_dropping(vectors, pages, tmp_path):
    with drop(vectors, "divprune", tokens=64):
        vectors.save(str(tmp_path))
    (whole,) = vectors.encode_document(pages[:1])
    (again,) = ST.MultiVectorEncoder(str(tmp_path)).encode_document(pages[:1])
    assert whole.shape == again.shape == (VISION, 128)
    assert (whole == again).all()


@pytest.mark.further
def test_a_batch_of_a_hundred_pages_equals_its_pages_alone(mean, pages):
    many = [pages[index % 3] for index in range(100)]
    with drop(mean, "divprune", tokens=64):
        alone = mean.encode(pages, batch_size=1, convert_to_tensor=True)
        together = mean.encode(many, batch_size=100, convert_to_tensor=True)
    assert torch.allclose(together, alone[[index % 3 for index in range(100)]], atol=1e-2)


@pytest.mark.parametrize(
    ("method", "word"), [("v2drop", "few"), ("mustdrop", "few"), ("cdpruner", "question")], ids=lambda value: value
)
def test_methods_that_leave_no_index_are_refused(vectors, method, word):
    with pytest.raises(UnsupportedError, match=word), drop(vectors, method, tokens=64):
        pass


def test_methods_that_act_while_decoding_are_refused(vectors):
    with pytest.raises(UnsupportedError, match="decod"), drop(vectors, "divprune+read", tokens=64):
        pass


def test_a_process_pool_is_refused(vectors):
    with pytest.raises(SessionError, match="pickled"), drop(vectors, "divprune", tokens=64):
        vectors.start_multi_process_pool(["cpu"])


def test_an_encoder_without_a_transformer_is_refused():
    with pytest.raises(SettingError, match="has 0"), drop(torch.nn.Linear(2, 2), "divprune"):
        pass


def test_rows_of_another_length_are_refused_and_the_module_is_as_before(vectors, module, pages):
    forward, layers = module.forward, module.model.language_model.layers[0].forward
    wrapped = module.model.forward

    def without_the_first_column(**inputs):
        output = wrapped(**inputs)
        output.last_hidden_state = output.last_hidden_state[:, 1:]
        return output

    module.model.forward = without_the_first_column
    try:
        with pytest.raises(UnsupportedError, match="columns"), drop(vectors, "divprune", tokens=64):
            vectors.encode_document(pages[:1])
    finally:
        del module.model.forward
    assert (module.forward, module.model.language_model.layers[0].forward) == (forward, layers)
    assert len(vectors.encode_document(pages[:1])[0]) == VISION


def test_vectors_that_are_pooled_already_pass_through(vectors, module, pages):
    name, run = module.module_output_name, module.forward

    def pool(features, **more):
        output = run(features, **more)
        return {**output, name: output[name].mean(dim=1)}

    module.forward = pool
    try:
        with drop(vectors, "divprune", tokens=64):
            pooled = module(module.preprocess(pages[:2]))
    finally:
        del module.forward
    assert pooled[name].shape == (2, 128)
    assert pooled["attention_mask"].sum(dim=1).max() < VISION


def test_a_budget_that_leaves_a_page_whole_is_told(vectors, pages):
    with pytest.warns(UserWarning, match="no token"), drop(vectors, "evs", tokens=64):
        whole = vectors.encode_document(pages[:1])
    assert len(whole[0]) == VISION
