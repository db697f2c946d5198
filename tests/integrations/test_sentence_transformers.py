"""sentence-transformers' own pooling, scoring and processes, on pages whose tokens are dropped."""

import pickle
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
def reranker():
    """A model that reads a question and a page, and answers with the logits of two words."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules.logit_score import LogitScore

    module = Transformer(str(fv.embedded.path()), transformer_task="any-to-any")
    module.processor.chat_template = (
        "{{ bos_token }}{% for turn in messages %}{% for part in turn.content %}{% if part.type == 'image' %}<image>"
        "{% else %} {{ part.text }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    yes, no = (module.tokenizer(word, add_special_tokens=False).input_ids[-1] for word in ("yes", "no"))
    return ST.CrossEncoder(modules=[module, LogitScore(yes, no)])


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


def test_rows_and_raw_features_are_those_that_are_left(mean, vectors, module, pages):
    beside = {"text": "the page of a red star", "image": pages[1]}  # longer, so the first page has padding
    with torch.no_grad(), fv.drop(module.model, "divprune", tokens=64) as trace:
        features = module.preprocess([pages[0], beside])
        inputs = {name: features[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        output, kept = module.model(**inputs).last_hidden_state, trace.pooling_mask.bool()
    with drop(mean, "divprune", tokens=64):
        by_token = mean.encode([pages[0], beside], output_value="token_embeddings")
    for rows, own, left in zip(by_token, output, kept, strict=True):
        assert torch.equal(rows, own[left])
    with drop(vectors, "divprune", tokens=64):
        (raw,) = vectors.encode_document(pages[:1], output_value=None)
    assert torch.equal(raw["input_ids"], features["input_ids"][0][kept[0]])
    assert len(raw["token_embeddings"]) == len(raw["input_ids"])
    assert raw["attention_mask"].sum() == 64  # the encoder keeps no text


def test_every_pooling_reads_the_rows_that_are_left(module, pages):
    from sentence_transformers.sentence_transformer.modules import Pooling

    pooling = Pooling(128, ("cls", "max", "weightedmean", "lasttoken"))
    encoder = ST.SentenceTransformer(modules=[module, pooling], truncate_dim=320)
    with drop(encoder, "divprune", tokens=64):
        (rows,) = encoder.encode(pages[:1], output_value="token_embeddings")
        (pooled,) = encoder.encode(pages[:1], convert_to_numpy=False, normalize_embeddings=True)
    short = {"token_embeddings": rows[None], "attention_mask": torch.ones(1, len(rows), dtype=torch.int64)}
    assert torch.equal(pooled, normalize(pooling(short)["sentence_embedding"][0, :320], dim=0))


def test_the_callers_features_stay_whole(mean, module, pages):
    """Losses that cache gradients run them twice."""
    features = module.preprocess(pages[:1])
    with torch.no_grad(), drop(mean, "divprune", tokens=64):
        first = mean(features)["sentence_embedding"]
        assert features["attention_mask"].sum() > VISION
        assert torch.equal(mean(features)["sentence_embedding"], first)


@pytest.mark.parametrize("method", ["cdpruner", "v2drop"])
def test_a_reranker_gives_the_scores_of_a_context_around_its_model(reranker, pages, method):
    with fv.drop(reranker[0].model, method, retention=1 / 3):
        right = reranker.predict([("Is there a red star?", pages[0])])
    with drop(reranker, method, retention=1 / 3) as trace:
        (rank,) = reranker.rank("Is there a red star?", pages[:1])
    assert rank["score"] == right[0]
    assert trace.retention[0] < 0.4


def test_queries_are_encoded_as_without_dropping(vectors, mean):
    queries = ["red star", "a blue moon beside it"]
    whole = [*vectors.encode_query(queries), *mean.encode(queries, output_value="token_embeddings")]
    with drop(vectors, "divprune", tokens=64):
        same = vectors.encode_query(queries)
    with drop(mean, "divprune", tokens=64):
        same += mean.encode(queries, output_value="token_embeddings")
    for before, rows in zip(whole, same, strict=True):
        assert before.shape == rows.shape
        assert (before == rows).all()


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
        vectors.encode_document(pages[:1])
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


def test_methods_that_act_while_decoding_are_refused(vectors, reranker):
    for encoder in (vectors, reranker):
        with pytest.raises(UnsupportedError, match="decod"), drop(encoder, "divprune+read", tokens=64):
            pass


POOL = {"pool": {"input": None, "output": None, "processes": []}}  # as of one that began before


@pytest.mark.parametrize("elsewhere", [POOL, {"device": ["cpu", "cpu"]}], ids=["pool", "devices"])
@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document", "predict", "rank"])
def test_other_processes_are_refused(vectors, reranker, pages, name, elsewhere):
    encoder = vectors if "encode" in name else reranker
    inputs = {"predict": [[("A red star?", pages[0])]], "rank": ["A red star?", pages[:1]]}.get(name, [pages[:1]])
    call = getattr(encoder, name)
    with pytest.raises(SessionError, match="pool"), drop(encoder, "divprune", tokens=64):
        getattr(encoder, name)(*inputs, **elsewhere)
    assert getattr(encoder, name) == call


def test_a_process_pool_is_refused(vectors):
    with pytest.raises(SessionError, match="pickled"), drop(vectors, "divprune", tokens=64):
        vectors.start_multi_process_pool(["cpu"])
    with pytest.raises(SessionError, match="pickled"), drop(vectors, "divprune", tokens=64):
        pickle.dumps(vectors)


def test_a_context_in_which_nothing_was_encoded_says_so_at_the_users_line(vectors, module):
    for encoder in (vectors, module):  # the module alone is an encoder too
        with pytest.warns(UserWarning, match="Nothing was dropped") as noted, drop(encoder, "divprune", tokens=64):
            pass
        assert noted[0].filename == __file__


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
    with pytest.warns(UserWarning, match="no token") as noted, drop(vectors, "evs", tokens=64):
        whole = vectors.encode_document(pages[:1])
    assert len(whole[0]) == VISION
    assert noted[0].filename == __file__
