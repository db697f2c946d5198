"""How vLLM runs Qwen models that drop: encoding in batches, memory of the tower, preemption, videos, two processes."""

import numpy
import pytest
import torch

from tests import checkpoints_qwen
from tests.qwen_models import Ask, differences, engine_of, picture, run, sampling, shut

NEAR = 1e-4
METHOD = "visionzip"
FILM = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def engine(name, folder):
    """Room for six blocks of 32 tokens each, and for 100 tokens of pictures at once, before any is dropped."""
    llm = engine_of(
        name, folder, METHOD, num_gpu_blocks_override=7, max_model_len=128, max_num_batched_tokens=128, max_num_seqs=8,
        mm_processor_kwargs={"foveate_tokens": 4}, enable_mm_embeds=True,
    )  # fmt: skip
    yield llm
    shut(llm)


def runs_of_tower(engine, asks, **settings):
    """Patches in each run of the tower, and the outputs."""
    runs = []

    def listen(model):
        def note(module, args, kwargs):
            runs.append(len(args[0]))

        return model.visual.register_forward_pre_hook(note, with_kwargs=True)

    (handle,) = engine.apply_model(listen)
    outputs = run(engine, asks, **settings)
    handle.remove()
    return runs, outputs


def test_a_rate_of_the_servers_kwargs_holds_until_a_request_says_another(engine, reference):
    usual, own = Ask([picture(5, 5, 20)]), Ask([picture(5, 5, 21)], rate={"retention": 0.3})
    outputs = run(engine, [usual, own])
    rated = Ask(usual.images, rate={"tokens": 4})
    assert differences(outputs[0], reference.answer(rated, METHOD)) < NEAR
    assert differences(outputs[1], reference.answer(own, METHOD)) < NEAR


def test_pictures_of_many_requests_run_through_the_tower_together_as_far_as_it_was_measured(engine, reference):
    most = engine.llm_engine.vllm_config.scheduler_config.max_num_encoder_input_tokens
    asks = [Ask([picture(5, 6, 30 + index)], rate={"tokens": 3}) for index in range(8)]
    size = size_of(asks[0], engine)
    runs, outputs = runs_of_tower(engine, asks)
    assert sum(runs) == 8 * 4 * size
    assert 8 * size > most
    assert 4 * size < max(runs) <= 4 * most
    for ask, output in zip(asks, outputs, strict=True):
        assert differences(output, reference.answer(ask, METHOD)) < NEAR


def size_of(ask, engine):
    """Tokens of an image before any is dropped."""
    (output,) = run(engine, [Ask(ask.images, "whole", {"retention": 1.0})], 1)
    return output.prompt_token_ids.count(engine.model_config.hf_config.image_token_id)


def test_more_requests_fit_beside_one_another(engine):
    """The scheduler counts what is left."""
    image = [picture(6, 6, 40)]
    few, all_of_it = Ask(image, rate={"tokens": 3}), Ask(image, rate={"retention": 1.0})
    assert together(engine, few) > together(engine, all_of_it)


def together(engine, ask):
    """How many of four equal requests run at a time, at most."""
    core = engine.llm_engine.engine_core.engine_core
    counts = []
    schedule = core.scheduler.schedule

    def counting(*args, **kwargs):
        scheduled = schedule(*args, **kwargs)
        counts.append(len(core.scheduler.running))
        return scheduled

    core.scheduler.schedule = counting
    try:
        engine.llm_engine.reset_prefix_cache()
        run(engine, [Ask(ask.images, f"{index} is it?", ask.rate) for index in range(6)], 4)
    finally:
        del core.scheduler.schedule
    return max(counts)


def test_requests_that_were_preempted_go_on_as_they_began(engine, reference):
    core = engine.llm_engine.engine_core.engine_core
    preempted = []
    preempt = core.scheduler._preempt_request

    def counting(request, *args, **kwargs):
        preempted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    core.scheduler._preempt_request = counting
    asks = [Ask([picture(4, 5, 50 + index)], f"{index}: what?", {"tokens": 6}) for index in range(5)]
    try:
        outputs = run(engine, asks, 40)
    finally:
        del core.scheduler._preempt_request
    assert preempted
    for ask, output in zip(asks, outputs, strict=True):
        assert differences(output, reference.answer(ask, METHOD, 40)) < NEAR


def test_positions_of_whole_pictures_fit_the_table_as_in_vllms_own_way_to_prune(engine):
    """Text behind a cut picture stands where the whole one would end: positions go beyond the prompt's length."""
    config = engine.model_config.hf_text_config

    def rows(model):
        return len(model.get_language_model().model.layers[0].self_attn.rotary_emb.cos_sin_cache)

    assert engine.apply_model(rows) == [4 * config.max_position_embeddings]


def test_videos_and_embeddings_stay_as_vllm_has_them(name, folder, engine):
    frames = numpy.random.default_rng(60).integers(0, 255, (4, 64, 96, 3), dtype=numpy.uint8)
    about = {
        "fps": 2.0,
        "duration": 2.0,
        "total_num_frames": 4,
        "frames_indices": [0, 1, 2, 3],
        "video_backend": "opencv",
    }
    film = {"video": [(frames, about)]}
    levels = {"qwen2_5_vl": 1, "qwen3_vl": 4}[name]
    rows = torch.randn(12, 64 * levels, generator=torch.Generator().manual_seed(62))
    ready = {"image": {"image_embeds": rows, "image_grid_thw": torch.tensor([[1, 4, 12]])}}
    both = {**film, "image": [picture(3, 4, 61)]}
    mark = checkpoints_qwen.MARK
    requests = [
        {"prompt": f"USER: {FILM}\nWhat moves? ASSISTANT:", "multi_modal_data": film},
        {
            "prompt": f"USER: {FILM}{mark}\nIs it in the film? ASSISTANT:",
            "multi_modal_data": both,
            "mm_processor_kwargs": {"foveate_retention": 1.0},
        },
        {"prompt": f"USER: {mark}\nWhat was it? ASSISTANT:", "multi_modal_data": ready},
    ]
    dropping = tokens_of(engine, requests)
    shut(engine)
    stock = engine_of(name, folder, None, max_model_len=512, enable_mm_embeds=True)
    requests[1].pop("mm_processor_kwargs")
    assert dropping == tokens_of(stock, requests)
    shut(stock)


def tokens_of(engine, requests):
    outputs = engine.generate(requests, sampling(8), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]
