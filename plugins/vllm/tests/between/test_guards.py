"""What cannot work between the layers is refused with the reason, before a model is loaded."""

from types import SimpleNamespace as Some

import pytest
import transformers

from foveate.errors import UnsupportedError
from foveate_vllm import guards
from tests import checkpoints
from tests.between.models import METHODS, engine, settings

ENGINES = {
    "--no-enable-prefix-caching": {"enable_prefix_caching": True},
    "--enforce-eager": {"enforce_eager": False},
    "--tensor-parallel-size instead of --pipeline-parallel-size": {"pipeline_parallel_size": 2},
    "--speculative-config": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    },
    "--kv-transfer-config": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "--long-prefill-token-threshold": {"long_prefill_token_threshold": 64},
    "the attention backend CPU_ATTN alone.* would take FLASHINFER": {"attention_config": {"backend": "FLASHINFER"}},
    "--scheduler-cls": {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"},
}
STAGES = {
    "may number rows anew": "pyramiddrop:layer_list=1,2,4",
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


def test_an_engine_on_another_device_is_refused_before_its_backend_is_known():
    config = Some(device_config=Some(device_type="cuda"), attention_config=Some(backend=None))
    with pytest.raises(UnsupportedError, match="would take one for cuda"):
        guards.refuse_engine(config)


def test_layers_with_another_attention_backend_are_refused():
    from foveate_vllm.decoder import Dropping

    attention = Some(attn_backend=Some(get_name=lambda: "TRITON_ATTN"), layer_name="0")
    layers = [Some(self_attn=Some(attn=attention), forward=print)]
    with pytest.raises(UnsupportedError, match="would take TRITON_ATTN"):
        Dropping(Some(cuts=()), Some(layers=layers))


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


def test_a_slip_of_the_pen_in_the_server_s_own_kwargs_is_refused_at_its_start(llava_folder):
    with pytest.raises(ValueError, match="takes foveate_tokens or foveate_retention"):
        configured(llava_folder, "visionzip", mm_processor_kwargs={"foveate_token": 9})
