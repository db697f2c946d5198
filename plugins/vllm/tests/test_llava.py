"""LLaVA-1.5 in vLLM answers as foveate on transformers does, and what it drops the scheduler does not count."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from foveate.errors import FoveateError, SettingError
from foveate.naming import parse
from foveate_vllm.setting import Rate, Setting
from tests.engines import Reference, answers, engine, picture, request

pytest.importorskip("vllm")

FULL = 36
METHODS = (
    "visionzip",
    "visionzip:merge=average",
    "divprune",
    "prumerge",
    "prumerge_plus",
    "hiprune",
    "holov",
    "scope",
    "tome",
    "vispruner",
    "averagepool",
    "uniform:layers=0;scope=image",
    "averagepool:retention=0.5+divprune",
    "visionzip:retention=0.5+uniform:layers=0;scope=image",
)


def _with(method, tokens=None, retention=None):
    return parse(method).with_budget(tokens=tokens, retention=retention)


@pytest.fixture(scope="module")
def reference(llava_folder):
    return Reference(llava_folder)


@pytest.fixture(scope="module")
def llm(llava_folder):
    with engine(llava_folder, {"method": "visionzip", "tokens": 9}) as llm:
        yield llm


@pytest.mark.parametrize("method", METHODS)
def test_a_method_answers_as_on_transformers(llava_folder, reference, method):
    one, two = request([picture(0)]), request([picture(1), picture(2)])
    with engine(llava_folder, {"method": method, "tokens": 9}) as llm:
        said = answers(llm, [one, two, one | {"mm_processor_kwargs": {"foveate_retention": 0.5}}])
    assert said == [
        reference.answer(one, _with(method, tokens=9)),
        reference.answer(two, _with(method, tokens=9)),
        reference.answer(one, _with(method, retention=0.5)),
    ]


def _prompt_lengths(llm, requests):
    from vllm import SamplingParams

    outputs = llm.generate(requests, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return [len(output.prompt_token_ids) for output in outputs]


def test_random_dropping_draws_each_image_by_itself(llava_folder, reference):
    # On transformers the lots of a second image go on from the first; here images are encoded for any prompt.
    one = request([picture(0)])
    method = "random:layers=0;scope=image;seed=3"
    with engine(llava_folder, {"method": method, "tokens": 9}) as llm:
        (said,) = answers(llm, [one])
    assert said == reference.answer(one, _with(method, tokens=9))


def test_the_tower_stage_of_visiondrop_works_by_itself(llava_folder, reference):
    method = "visiondrop:layer_list=();image_token_list=();reference=36;dominant=6;contextual=3"
    requests = [request([picture(0)]), request([picture(1), picture(2)])]
    with engine(llava_folder, {"method": method}) as llm:
        said = answers(llm, requests)
    assert said == [reference.answer(one, parse(method)) for one in requests]


def test_a_server_that_keeps_everything_drops_for_a_request_that_asks_for_less(llava_folder, reference):
    one, less = request([picture(7)]), request([picture(7)], foveate_tokens=6)
    with engine(llava_folder, {"method": "visionzip", "retention": 1}) as llm:
        said = answers(llm, [one, less])
    assert said == [reference.answer(one), reference.answer(one, _with("visionzip", tokens=6))]


def _adapter(folder, model):
    """Write a LoRA adapter of the decoder, and add it to the model's own weights."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for index, layer in enumerate(model.model.language_model.layers):
        down = 0.2 * torch.randn(8, 64, generator=generator)
        up = 0.2 * torch.randn(64, 8, generator=generator)
        name = f"base_model.model.model.language_model.layers.{index}.self_attn.o_proj"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        layer.self_attn.o_proj.weight.data += up @ down
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_adapters_of_the_decoder_answer_as_weights_that_have_them(llava_folder, tmp_path):
    from vllm.lora.request import LoRARequest

    asked = [request([picture(0)]), request([picture(1), picture(2)]), request(prompt="USER: Hello? ASSISTANT:")]
    method, reference = parse("visionzip:tokens=9"), Reference(llava_folder)
    plain = [reference.answer(one, method) for one in asked]
    _adapter(tmp_path, reference.model)
    adapted = [reference.answer(one, method) for one in asked]
    assert all(before != after for before, after in zip(plain, adapted, strict=True))
    with engine(llava_folder, {"method": "visionzip", "tokens": 9}, enable_lora=True) as llm:
        assert answers(llm, asked) == plain
        assert answers(llm, asked, lora_request=LoRARequest("one", 1, str(tmp_path))) == adapted


def test_a_server_without_images_starts_although_the_method_reads_a_block_further(llava_folder):
    text, method = request(prompt="USER: Is there no picture at all? ASSISTANT:"), {"method": "prumerge:tokens=20"}
    with engine(llava_folder, method) as both:
        expected = answers(both, [text])
    with engine(llava_folder, method, limit_mm_per_prompt={"image": 0}) as texts:
        assert answers(texts, [text]) == expected


def test_the_prompt_is_shorter_by_what_is_dropped(llm):
    text, one, two = request(), request([picture(0)]), request([picture(0), picture(1)])
    none, nine, twice = _prompt_lengths(llm, [text, one, two])
    marks = 2  # "<image>" and the line behind it are as many tokens as one placeholder and the line
    assert nine - none == 9 + marks - 1
    assert twice - nine == 9 + marks - 1


def test_text_and_several_images_share_a_batch(llm, reference):
    requests = [
        request(),
        request([picture(0)]),
        request([picture(1), picture(2)]),
        request([picture(3), picture(0), picture(3)]),
        request([picture(4)], foveate_tokens=FULL),
        request([picture(5)], foveate_retention=0.25),
    ]
    methods = [9, 9, 9, 9, FULL, 9]
    expected = [
        reference.answer(request_, _with("visionzip", tokens=tokens))
        for request_, tokens in zip(requests, methods, strict=True)
    ]
    assert answers(llm, requests) == expected


def test_one_image_at_two_rates_is_never_mixed(llm, reference):
    image = picture(7)
    requests = [request([image], foveate_tokens=tokens) for tokens in (6, 18, 6, 30)]
    expected = [reference.answer(request([image]), _with("visionzip", tokens=tokens)) for tokens in (6, 18, 6, 30)]
    assert len({tuple(said) for said in expected}) == 3
    assert answers(llm, requests) == expected
    assert [answers(llm, [one])[0] for one in requests] == expected


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ({"foveate_tokens": 0}, "1 or more; got 0"),
        ({"foveate_tokens": 37}, "between 1 and 36 for this image; got 37"),
        ({"foveate_tokens": 2.5}, "whole number"),
        ({"foveate_tokens": True}, "whole number"),
        ({"foveate_retention": 0}, "above 0 and at most 1; got 0"),
        ({"foveate_retention": 1.5}, "above 0 and at most 1; got 1.5"),
        ({"foveate_retention": "a"}, "above 0 and at most 1; got 'a'"),
        ({"foveate_retention": 0.5, "foveate_tokens": 9}, "not both"),
        ({"foveate_token": 9}, "takes foveate_tokens or foveate_retention;.* Got foveate_token\\."),
        ({"foveate_tokens": 9, "Foveate-Retention": 0.5}, "Got Foveate-Retention"),
        ({"foveate_method": "divprune"}, "the method is set when the server starts. Got foveate_method"),
        ({"images_kwargs": {"foveate_tokens": 9}}, "Got foveate_tokens in images_kwargs"),
    ],
)
def test_a_wrong_rate_is_a_value_error_and_the_engine_lives_on(llm, reference, rate, said):
    with pytest.raises(ValueError, match=said):
        answers(llm, [request([picture(0)], **rate)])
    asked = request([picture(0)])
    assert answers(llm, [asked]) == [reference.answer(asked, _with("visionzip", tokens=9))]


def test_a_rate_in_a_request_without_an_image_is_refused(llm):
    with pytest.raises(
        ValueError, match="foveate_tokens says how much of each image stays, and this request has no image"
    ):
        answers(llm, [request(foveate_tokens=9)])
    assert answers(llm, [request()])


def _model(llm):
    return llm.llm_engine.model_executor.driver_worker.get_model()


def _counted(llm, monkeypatch):
    """The model, and how many pictures each run of its tower gets."""
    model, batches = _model(llm), []
    run = model.vision_tower.forward

    def counted(pixels, **options):
        batches.append(len(pixels))
        return run(pixels, **options)

    monkeypatch.setattr(model.vision_tower, "forward", counted)
    return model, batches


def test_images_of_a_step_are_encoded_together(llm, monkeypatch):
    _, batches = _counted(llm, monkeypatch)
    answers(llm, [request([picture(seed)], foveate_tokens=3 + seed % 2) for seed in range(20, 24)])
    assert batches == [4]


def test_images_of_a_step_run_in_groups_that_fit_the_tower(llm, reference, monkeypatch):
    model, batches = _counted(llm, monkeypatch)
    monkeypatch.setattr(model, "_most", 3 * FULL)
    requests = [request([picture(seed)]) for seed in range(30, 34)]
    assert answers(llm, requests) == [reference.answer(one, _with("visionzip", tokens=9)) for one in requests]
    assert batches == [3, 1]


def test_images_cut_by_chunks_answer_alike(llava_folder, reference):
    requests = [request([picture(0), picture(1)]), request([picture(2)], foveate_tokens=30), request()]
    options = {"max_num_batched_tokens": 40, "enable_chunked_prefill": True, "enable_prefix_caching": True}
    expected = [
        reference.answer(requests[0], _with("visionzip", tokens=20)),
        reference.answer(requests[1], _with("visionzip", tokens=30)),
        reference.answer(requests[2]),
    ]
    with engine(llava_folder, {"method": "visionzip", "tokens": 20}, **options) as llm:
        assert answers(llm, requests) == expected
        assert answers(llm, requests) == expected  # from the prefix cache


def _most_running(llm, requests):
    """The most requests that ran at once."""
    from vllm import SamplingParams

    core = llm.llm_engine
    for index, asked in enumerate(requests):
        core.add_request(str(index), asked, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    scheduler = core.engine_core.engine_core.scheduler
    most = 0
    while core.has_unfinished_requests():
        core.step()
        most = max(most, len(scheduler.running))
    return most


def test_more_requests_fit_where_tokens_are_dropped(llava_folder):
    requests = [request([picture(seed), picture(seed + 50), picture(seed + 90)]) for seed in range(8)]
    options = {"num_gpu_blocks_override": 17, "max_num_seqs": 8, "max_model_len": 256, "enable_prefix_caching": False}
    with engine(llava_folder, **options) as llm:
        stock = _most_running(llm, requests)
    with engine(llava_folder, {"method": "visionzip", "tokens": 6}, **options) as llm:
        dropping = _most_running(llm, requests)
    assert dropping >= 2 * stock


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"method": {"method": "prumerge"}}, "lets the picture decide"),
        ({"method": "resize", "tokens": 9}, "before the vision tower"),
        ({"method": "pixelprune"}, "before the vision tower"),
        ({"method": "mustdrop"}, "inside"),
        ({"method": "random:layers=0", "tokens": 9}, "scope=image"),
        ({"method": "visionzip", "token": 9}, "takes method, and tokens or retention; got method, token"),
        ({"tokens": 9}, "takes method"),
        ({"method": "nothing"}, "nothing"),
        ({"method": "visionzip:dominant=9", "tokens": 9}, "not both|either"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_the_reason(llava_folder, setting, said):
    config = transformers.AutoConfig.from_pretrained(llava_folder)
    with pytest.raises(FoveateError, match=said):
        Setting(setting, config).count(Rate(), FULL, [(6, 6)])


def test_a_rate_of_a_request_is_refused_where_no_stage_stands_before_the_decoder(llava_folder):
    config = transformers.AutoConfig.from_pretrained(llava_folder)
    setting = Setting({"method": "v2drop"}, config)
    with pytest.raises(SettingError, match="requests cannot have rates of their own"):
        setting.count(Rate(retention=0.5), FULL, [(6, 6)])
    assert setting.count(Rate(), FULL, [(6, 6)]) == FULL
