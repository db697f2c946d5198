"""Qwen2.5-VL and Qwen3-VL in vLLM drop the tokens that foveate drops in transformers, and answer the same."""

import pytest

from tests.qwen_models import Ask, differences, engine_of, picture, run, shut

NEAR = 1e-4
METHOD = "visionzip"
LONG = "A long story that comes before the picture, and then goes on for a while, with many words that say little."


@pytest.fixture(scope="module", params=["whole", "chunks"])
def engine(request, name, folder):
    """Prompts go in whole, or 40 tokens at a time, so that images are cut by chunks."""
    settings = {"max_num_batched_tokens": 40} if request.param == "chunks" else {}
    llm = engine_of(name, folder, METHOD, **settings)
    yield llm
    shut(llm)


def check(engine, reference, asks, method=METHOD):
    """Ask all at once, and compare each with transformers."""
    for ask, output in zip(asks, run(engine, asks), strict=True):
        assert differences(output, reference.answer(ask, method)) < NEAR, ask


def test_rates_of_requests_are_met_in_a_batch_that_is_larger_than_the_engine_holds(engine, reference):
    asks = [
        Ask([picture(5, 8)], rate={"tokens": 11}),
        Ask([picture(9, 3, 1)], "A longer question about what can be read there?", {"tokens": 2}),
        Ask(question="No picture at all?"),
        Ask([picture(6, 6, 2), picture(7, 4, 3)], rate={"retention": 0.25}),
        Ask([picture(4, 9, 4)], before=LONG, rate={"retention": 0.1}),
        Ask([picture(3, 3, 5), picture(5, 4, 6)], before=LONG, rate={"tokens": 3}),
    ]
    check(engine, reference, asks)


def test_a_share_of_one_keeps_all(engine, reference):
    ask = Ask([picture(5, 8)], rate={"retention": 1.0})
    check(engine, reference, [ask])


def test_without_a_rate_the_methods_own_setting_holds(engine, reference):
    check(engine, reference, [Ask([picture(9, 8, 7)], "Who?"), Ask([picture(4, 5, 8)], "Where?")])


def test_a_picture_seen_before_comes_from_the_prefix_cache(engine, reference):
    first = Ask([picture(9, 9, 9)], before=LONG, rate={"tokens": 50})
    again = Ask(first.images, "And what else is there to be seen?", first.rate, LONG)
    check(engine, reference, [first])
    for ask in (first, again):
        (output,) = run(engine, [ask])
        assert output.num_cached_tokens >= 64
        assert differences(output, reference.answer(ask, METHOD)) < NEAR


def test_rates_of_one_picture_are_never_mixed(engine, reference):
    image = picture(8, 8, 10)
    asks = [Ask([image], rate={"tokens": tokens}) for tokens in (40, 7, 21)]
    check(engine, reference, asks)
    check(engine, reference, asks[::-1])
    check(engine, reference, [Ask([image, image], rate={"tokens": 9})])


def test_pictures_under_one_name_of_the_users_own_are_not_mixed_either(engine, reference):
    image = picture(8, 6, 11)
    for tokens in (30, 6):
        ask = Ask([image], rate={"tokens": tokens})
        (output,) = run(engine, [ask], multi_modal_uuids={"image": ["mine"]})
        assert differences(output, reference.answer(ask, METHOD)) < NEAR


def test_the_prompt_is_shorter_by_what_was_dropped(engine):
    image = picture(8, 8, 12)
    whole, few = run(engine, [Ask([image], rate={"retention": 1.0}), Ask([image], rate={"tokens": 5})])
    size = len(whole.prompt_token_ids) - len(few.prompt_token_ids) + 5
    assert whole.prompt_token_ids.count(image_id(engine)) == size
    assert few.prompt_token_ids.count(image_id(engine)) == 5


@pytest.mark.parametrize(
    "rate", [{"tokens": 0}, {"tokens": 10_000}, {"retention": 1.5}, {"tokens": 3, "retention": 0.5}]
)
def test_a_wrong_rate_is_refused_and_the_engine_goes_on(engine, reference, rate):
    ask = Ask([picture(4, 4, 13)], rate=rate)
    with pytest.raises(ValueError, match="foveate_"):
        run(engine, [ask])
    check(engine, reference, [Ask(ask.images, rate={"tokens": 4})])


def test_a_prompt_that_ends_in_an_image_is_refused(engine):
    images = {"image": [picture(4, 4, 14)]}
    with pytest.raises(ValueError, match="ends in an image"):
        engine.generate([{"prompt": "See <|vision_start|><|image_pad|>", "multi_modal_data": images}], use_tqdm=False)


def image_id(engine):
    return engine.model_config.hf_config.image_token_id
