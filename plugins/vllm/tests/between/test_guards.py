"""What cannot work between the layers is refused with the reason, before a model is loaded."""

from types import SimpleNamespace as Some

import pytest
import transformers

from foveate.errors import SettingError, UnsupportedError
from foveate_vllm import guards
from tests import checkpoints
from tests.between.models import METHODS, engine, settings

ENGINES = {
    "--tensor-parallel-size instead of --pipeline-parallel-size": {"pipeline_parallel_size": 2},
    "--speculative-config": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    },
    "--kv-transfer-config": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "--long-prefill-token-threshold": {"long_prefill_token_threshold": 64},
    "would be wrong with the attention backend FLASHINFER": {"attention_config": {"backend": "FLASHINFER"}},
    "would take FLASH_ATTN.*TRITON_ATTN; or run foveate-vllm check": {"attention_config": {"backend": "FLASH_ATTN"}},
    "--kv-sharing-fast-prefill": {"kv_sharing_fast_prefill": True},
    "cannot replay a whole step as one CUDA graph": {
        "enforce_eager": False,
        "compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"},
    },
    "--scheduler-cls": {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"},
}
STAGES = {
    "may renumber rows": "pyramiddrop:layer_list=1,2,4",
    "cuts KV caches": "priortr",
    "reads only some of the cached tokens": "fastv+read",
    "may merge tokens": "visiondrop:positions=keep;layer_list=1,2,4",
    "can read where tokens are": "clse:kv=false;layers=1,2,4",
    "rows='raters'": "sparsevlm_plus:pruning_layers=1,2,4",
}


def configured(folder, method, **options):
    """What vLLM makes of these settings, without a model."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    arguments = settings(folder, method, **options)
    arguments["disable_log_stats"] = True
    return EngineArgs(**arguments).create_engine_config()


@pytest.mark.parametrize("advice", ENGINES)
def test_an_engine_that_cannot_be_served_is_refused_with_what_to_do_instead(llava_folder, advice):
    with pytest.raises(Exception, match=f"Dropping vision tokens between layers .*{advice}"):
        configured(llava_folder, METHODS[0], **ENGINES[advice])


@pytest.mark.parametrize("reason", STAGES)
def test_a_stage_that_cannot_work_is_refused_with_the_reason(llava_folder, reason):
    with pytest.raises(Exception, match=reason):
        configured(llava_folder, STAGES[reason])


def test_methods_before_the_decoder_keep_vllms_own_settings(llava_folder):
    config = configured(llava_folder, "visionzip", enable_prefix_caching=True, enforce_eager=False)
    assert config.scheduler_config.scheduler_cls is None


def test_methods_between_the_layers_get_a_scheduler_that_keeps_prompts_whole(llava_folder):
    config = configured(llava_folder, METHODS[0])
    assert config.scheduler_config.scheduler_cls == "foveate_vllm.scheduler.scheduler"


@pytest.fixture(scope="module")
def taken(llava_folder):
    """A config that is taken, to be changed: what a small model cannot be started with on one machine."""
    return configured(llava_folder, METHODS[0])


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("device_config", {"device_type": "cuda"}, "would take vLLM's choice for cuda"),
        ("parallel_config", {"enable_expert_parallel": True}, "cannot divide experts between processes"),
        ("parallel_config", {"data_parallel_size": 2}, "cannot divide experts between processes"),
        ("model_config", {"is_hybrid": True}, "cannot work in recurrent layers"),
        ("model_config", {"is_attention_free": True}, "cannot work in recurrent layers"),
        ("model_config", {"is_mm_prefix_lm": True}, "whose image tokens attend to later ones"),
    ],
)
def test_an_engine_of_another_kind_is_refused_with_the_reason(taken, part, changes, said):
    usual = {name: getattr(taken, name) for name in vars(taken)}
    model = Some(is_moe=True, is_hybrid=False, is_attention_free=False, is_mm_prefix_lm=False)
    parallel = {
        "pipeline_parallel_size": 1, "data_parallel_size": 1, "enable_expert_parallel": False, "enable_dbo": False,
        "use_ubatching": False, "decode_context_parallel_size": 1, "prefill_context_parallel_size": 1,
    }  # fmt: skip
    scheduling = Some(long_prefill_token_threshold=0, scheduler_cls=None)
    config = Some(
        **usual | {"model_config": model, "parallel_config": Some(**parallel), "scheduler_config": scheduling}
    )
    guards.refuse_engine(config)
    vars(config)[part] = Some(**vars(getattr(config, part)) | changes)
    with pytest.raises(UnsupportedError, match=f"between layers .*{said}"):
        guards.refuse_engine(config)


def test_another_backend_is_taken_where_the_setting_says_that_it_is_untested():
    guards.refuse_backend("FLASH_ATTN", untested=True)
    guards.refuse_backend("TRITON_ATTN")
    with pytest.raises(UnsupportedError, match="would be wrong"):
        guards.refuse_backend("FLASHINFER", untested=True)


def test_graphs_of_pieces_are_taken_and_whole_ones_switched_off(llava_folder):
    for options in ({}, {"compilation_config": {"cudagraph_mode": "PIECEWISE"}}):
        config = configured(llava_folder, METHODS[0], enforce_eager=False, **options)
        assert not config.compilation_config.cudagraph_mode.has_full_cudagraphs()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({}, "needs layers whose attention is self_attn.attn"),
        ({"kv_sharing_target_layer_name": "model.layers.0.self_attn.attn"}, "attends to the keys of an earlier one"),
        ({"sliding_window": 40}, "sliding window"),
        ({"attn_backend": Some(get_name=lambda: "FLEX_ATTENTION")}, "would take FLEX_ATTENTION"),
        ({"impl": None}, "has no SimpleNamespace.impl"),
    ],
)
def test_a_layer_that_stages_cannot_work_around_is_refused(layer, said):
    usual = {
        "attn_backend": Some(get_name=lambda: "CPU_ATTN"), "head_size": 32, "impl": 1, "layer_name": "0",
        "kv_cache": None, "kv_sharing_target_layer_name": None, "sliding_window": None,
    }  # fmt: skip
    changed = {name: value for name, value in (usual | layer).items() if value is not None or name not in layer}

    def forward(positions, hidden_states, residual):
        """As vLLM's decoder layers are called."""

    parts = Some(attn=Some(**changed)) if layer else Some(linear=1)
    like_a_layer = Some(self_attn=parts, forward=forward, input_layernorm=1)
    with pytest.raises(UnsupportedError, match=said):
        guards.refuse_layer(like_a_layer, untested=False)
    if layer:
        like_a_layer.forward = lambda hidden_states, mask: None
        with pytest.raises(UnsupportedError, match="SimpleNamespace takes hidden_states, mask"):
            guards.refuse_layer(like_a_layer, untested=False)


def test_an_engine_with_adapters_does_not_start(llava_folder):
    advice = "between layers cannot serve LoRA adapters.* Leave --enable-lora out"
    with pytest.raises(Exception, match=advice), engine(llava_folder, METHODS[0], enable_lora=True):
        pass


WINDOWS = (
    "between layers cannot work in a layer with a sliding window: behind a cut its 40 tokens .*disable-sliding-window"
)


def test_a_model_with_sliding_windows_is_refused_before_it_is_made(tmp_path):
    checkpoints.llava_checkpoint(tmp_path, text=transformers.MistralConfig, sliding_window=40)
    with pytest.raises(Exception, match=WINDOWS):
        configured(tmp_path, METHODS[0])
    config = configured(tmp_path, "visionzip")
    assert config.cache_config.sliding_window == 40


def test_an_engine_with_a_sliding_window_in_some_layers_does_not_start(tmp_path):
    kinds = ["full_attention", "full_attention", "sliding_attention"] * 2
    checkpoints.llava_checkpoint(tmp_path, sliding_window=40, layer_types=kinds)
    with pytest.raises(Exception, match=WINDOWS), engine(tmp_path, METHODS[0]):
        pass


def test_a_film_is_refused_where_images_are_cut_between_layers():
    guards.refuse_film_between_layers("image")
    with pytest.raises(SettingError, match=r"cannot drop tokens of video\. Send frames as images"):
        guards.refuse_film_between_layers("video")


def test_a_rate_without_an_image_is_refused_unless_it_is_the_server_s():
    guards.refuse_rate_without_image({"foveate_tokens": 9}, ["image", "video"], None)
    guards.refuse_rate_without_image({"foveate_tokens": 9, "fps": 2}, ["video"], {"foveate_tokens": 9})
    with pytest.raises(SettingError, match=r"foveate_tokens says .* has media of another kind .video"):
        guards.refuse_rate_without_image({"foveate_tokens": 8}, ["video"], {"foveate_tokens": 9})


def test_a_slip_of_the_pen_in_the_server_s_own_kwargs_is_refused_at_its_start(llava_folder):
    with pytest.raises(ValueError, match="takes foveate_tokens or foveate_retention"):
        configured(llava_folder, "visionzip", mm_processor_kwargs={"foveate_token": 9})
