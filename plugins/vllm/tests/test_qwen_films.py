"""Films on Qwen2.5-VL: the rows that stay, and their times, are those of foveate on transformers."""

import numpy
import pytest

from tests import checkpoints_qwen
from tests.qwen_models import Ask, Reference, differences, engine_of, picture, run, shut, use

pytest.importorskip("vllm")

NEAR = 1e-4
NAME = "qwen2_5_vl"
METHODS = ("vidcom2", "dycoke", "divprune", "visionzip", "holov")
"""Two of films, which rank frame by frame, and picture methods, one of which reads the tower."""


def film(seed, frames=8, height=64, width=96):
    """Noise that changes slowly, with what vLLM wants to know of a film; two frames are a temporal patch."""
    rng = numpy.random.default_rng(seed)
    still, noise = rng.integers(0, 255, (1, height, width, 3)), rng.integers(0, 255, (frames, height, width, 3))
    pixels = ((still + numpy.linspace(0, 1, frames)[:, None, None, None] * noise) / 2).astype(numpy.uint8)
    about = {"fps": 12.0, "duration": frames / 12, "total_num_frames": frames, "frames_indices": [*range(frames)]}
    return pixels, about | {"video_backend": "opencv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints_qwen.qwen_checkpoint(NAME, tmp_path_factory.mktemp(NAME))


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="module")
def engine(folder):
    """Nothing is cached: methods are no part of the keys."""
    llm = engine_of(NAME, folder, METHODS[0], enable_prefix_caching=False, mm_processor_cache_gb=0)
    yield llm
    shut(llm)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_of_films_what_it_keeps_in_transformers(engine, reference, method):
    use(engine, method)
    asks = [
        Ask(films=[film(1)], rate={"video_retention": 0.5}),
        Ask(films=[film(2, 6), film(3, 8, 96, 64)], rate={"video_retention": 0.6}, question="Which is longer?"),
        Ask(films=[film(4, 4)], question="And whole?"),
        Ask([picture(4, 6, 9)], "How many?"),
    ]
    if method != "dycoke":  # which leaves pictures whole
        asks.append(Ask([picture(4, 6, 5)], "Both?", {"video_retention": 0.5, "retention": 0.5}, films=[film(5)]))
    for ask, output in zip(asks, run(engine, asks), strict=True):
        assert differences(output, reference.answer(ask, method)) < NEAR, ask.question


def test_the_prompt_is_shorter_by_what_leaves(engine):
    use(engine, "vidcom2")
    whole, half = Ask(films=[film(1)]), Ask(films=[film(1)], rate={"video_retention": 0.5})
    pad = engine.model_config.hf_config.video_token_id
    counts = [output.prompt_token_ids.count(pad) for output in run(engine, [whole, half], 1)]
    assert counts[1] == round(counts[0] / 2)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (Ask([picture(3, 4)], rate={"video_retention": 0.5}), "foveate_video_retention says how much of each video"),
        (Ask(films=[film(1, 4)], rate={"retention": 0.5}), "foveate_retention says how much of each image"),
        (Ask(films=[film(1, 4)], rate={"video_retention": 1.5}), "above 0 and at most 1"),
        (Ask(films=[film(1, 4)], rate={"video_tokens": 9}), "takes foveate_tokens or foveate_retention or foveate_vid"),
    ],
)
def test_a_rate_that_is_wrong_is_refused(engine, ask, said):
    with pytest.raises(ValueError, match=said):
        run(engine, [ask])


def test_films_that_chunks_cut_in_two_and_that_were_seen_before_answer_alike(folder, reference):
    method = "vidcom2"
    llm = engine_of(NAME, folder, method, max_num_batched_tokens=16, max_num_seqs=2, max_model_len=256)
    asks = [Ask(films=[film(seed)], rate={"video_retention": rate}) for seed, rate in ((1, 0.5), (1, 0.7), (2, 0.5))]
    for _ in range(2):
        for ask, output in zip(asks, run(llm, asks), strict=True):
            assert differences(output, reference.answer(ask, method)) < NEAR
    shut(llm)
