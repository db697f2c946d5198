"""A recording, replayed on other prompts, leaves what a plain run leaves; where it cannot, the plain run answers."""

import sys
from contextlib import nullcontext
from functools import partial

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import LlamaMLP

import foveate as fv
from foveate._transformers import adapters_of, older, with_cache
from foveate.engine.extensions.replays.modules import Modules
from foveate.engine.extensions.replays.regions import DecoderCall
from foveate.engine.extensions.replays.replayer import Replayer
from foveate.errors import SettingError
from foveate.registry import family_for
from tests.engine.test_crossings import METHODS, NUMBERS_DECIDE, ONE_OF_EACH, V2DROP
from tests.invariants.settings import EVERYTHING
from tests.models import FAMILIES, batch, cached, is_vision, tiny
from tests.recorder import Recorder, Sides
from tests.tiny_derived import make

LAYOUT = "itt"  # of 32 columns or a multiple of these in some families, padded to that in others
RAGGED = ("titit", "tit", "tittt")
OWN_TOWERS = ["gemma4", "mistral3"]
"""Those that read on the host where pictures end."""
if older(transformers.__version__, "5.20"):
    OWN_TOWERS += ["idefics3", "smolvlm"]
ROUNDING = 1e-4
KEEPS_ALL = fv.Uniform(retention=1.0)


@pytest.fixture
def model(request):
    """A tiny model that nobody else has recorded, or will change."""
    return tiny.__wrapped__(getattr(request, "param", "llava"))


def answer(model, inputs, tokens=2):
    """What `generate` says, with its logits."""
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
    return output.sequences, torch.stack(output.logits)


def run(model, method, prompts, cuda_graphs=True, tokens=2):
    """Each prompt's answer, tokens that stages kept, and lengths of the cache; and the trace."""
    answers = []
    sides = Sides() if cuda_graphs else nullcontext()
    with sides, fv.drop(model, method, cuda_graphs=cuda_graphs) as trace:
        for inputs in prompts:
            ids, logits = answer(model, inputs, tokens)
            kept = [tokens.tolist() for stage in trace.stages for tokens in stage.kept]
            answers.append((ids, logits, kept, trace.kv_lengths))
    return answers, trace


def assert_same(answers, others, rounding=0.0):
    for (ids, logits, kept, lengths), (other_ids, other_logits, other_kept, other_lengths) in zip(
        answers, others, strict=True
    ):
        torch.testing.assert_close(logits, other_logits, rtol=0, atol=rounding)
        assert torch.equal(ids, other_ids)
        assert kept == other_kept
        assert lengths == other_lengths


def prompts(family, words=(LAYOUT,), count=3):
    return [batch(family, words, seed) for seed in range(count)]


def counted(counts):
    return counts.recorded, counts.replayed


@pytest.mark.filterwarnings("ignore:cuda_graphs")  # of towers that cannot be recorded
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_replayed(family, graphs_on_cpu):
    plain, _ = run(tiny(family), V2DROP, prompts(family), cuda_graphs=False)
    replayed, trace = run(tiny(family), V2DROP, prompts(family))
    assert_same(replayed, plain, ROUNDING)
    assert counted(trace.graphs.decoder) == (1, 1)
    assert counted(trace.graphs.tower) == ((0, 0) if family in OWN_TOWERS else (1, 1))


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_ragged_batches_are_replayed_bit_for_bit(family, graphs_on_cpu):
    plain, _ = run(tiny(family), V2DROP, prompts(family, RAGGED), cuda_graphs=False, tokens=1)
    replayed, trace = run(tiny(family), V2DROP, prompts(family, RAGGED), tokens=1)
    assert_same(replayed, plain)
    assert counted(trace.graphs.decoder) == (1, 1)


def replays(family, name):
    plain, _ = run(tiny(family), METHODS[name], prompts(family), cuda_graphs=False, tokens=1)
    replayed, trace = run(tiny(family), METHODS[name], prompts(family), tokens=1)
    assert_same(replayed, plain, ROUNDING)
    return trace.graphs.decoder


def in_turns(shift=0):
    """Each method on one of two families, on the other with another `shift`; on both with FOVEATE_TESTS=all."""
    both = ("llava", "qwen2_5_vl")
    return [
        (name, family)
        for at, name in enumerate(ONE_OF_EACH)
        for family in (both if EVERYTHING else (both[(at + shift) % 2],))
    ]


@pytest.mark.parametrize(("name", "family"), [pair for pair in in_turns() if pair[0] not in NUMBERS_DECIDE])
def test_every_method_is_replayed(name, family, graphs_on_cpu):
    counts = replays(family, name)
    if "in every step" not in counts.latest:
        # Where pictures decide how many tokens stay, prompts of one layout come in several.
        assert counts.recorded + counts.replayed + counts.plain["the first of its layout"] == 3


@pytest.mark.parametrize("name", NUMBERS_DECIDE)
def test_what_numbers_decide_runs_plainly(name, graphs_on_cpu):
    with pytest.warns(UserWarning, match="cannot be recorded"):
        counts = replays("llava", name)
    assert counts.replayed == 0


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_untouched_model_is_replayed(family, graphs_on_cpu):
    plain, _ = run(tiny(family), KEEPS_ALL, prompts(family), cuda_graphs=False)
    replayed, trace = run(tiny(family), None, prompts(family))
    assert_same(replayed, plain, ROUNDING)
    assert counted(trace.graphs.decoder) == (1, 1)


@pytest.mark.parametrize("method", [V2DROP, METHODS["visiondrop-0"], METHODS["divprune-0"], None])
@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_texts_of_other_lengths_share_a_recording(family, method, graphs_on_cpu):
    texts = [batch(family, [words]) for words in ("it", "itt", "tit", "itt", "it")]
    plain, _ = run(tiny(family), method or KEEPS_ALL, texts, cuda_graphs=False)
    replayed, trace = run(tiny(family), method, texts)
    assert_same(replayed, plain, ROUNDING)
    assert counted(trace.graphs.decoder) == (1, 2)  # "tit" has its picture elsewhere


def test_a_method_that_reads_the_question_has_a_recording_for_each_length(graphs_on_cpu):
    texts = [batch("llava_next", [words]) for words in ("it", "itt", "it", "itt")]
    _, trace = run(tiny("llava_next"), METHODS["fastv-0"], texts)
    assert counted(trace.graphs.decoder) == (2, 0)


def test_a_replay_fills_the_cache_that_is_handed_in(graphs_on_cpu):
    model, caches, asked = tiny("llava"), [], prompts("llava")
    with Sides(), torch.no_grad(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for inputs in asked:
            cache = DynamicCache(config=model.config)
            output = model(**inputs, **with_cache(cache), use_cache=True, output_hidden_states=False)
            caches.append((cache, output.logits))
    with torch.no_grad(), fv.drop(model, V2DROP):
        for inputs, (cache, logits) in zip(prompts("llava"), caches, strict=True):
            other = DynamicCache(config=model.config)
            plain = model(**inputs, **with_cache(other), use_cache=True)
            torch.testing.assert_close(logits, plain.logits, rtol=0, atol=ROUNDING)
            for layer, plain_layer in zip(cache.layers, other.layers, strict=True):
                for tensor, plain_tensor in zip(cached(layer), cached(plain_layer), strict=True):
                    torch.testing.assert_close(tensor, plain_tensor, rtol=0, atol=ROUNDING)
    assert trace.graphs.decoder.replayed == 1


def test_a_model_on_a_cpu_has_no_graphs():
    with pytest.raises(SettingError, match="CUDA"), fv.drop(tiny("llava"), V2DROP, cuda_graphs=True):
        pass


# -- what changes between two prompts ------------------------------------------------------------------------------


def changed(model, change):
    """Compare the last of four answers, before which something changes, with the plain run's; how the decoder ran."""
    four = prompts("llava", count=4)
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for inputs in four[:3]:
            answer(model, inputs)
        assert counted(trace.graphs.decoder) == (1, 1)
        change()
        ids, logits = answer(model, four[3])
    plain_ids, plain_logits = plain_answer(model, V2DROP, four[3])
    torch.testing.assert_close(logits, plain_logits, rtol=0, atol=ROUNDING)
    assert torch.equal(ids, plain_ids)
    return trace.graphs.decoder


def plain_answer(model, method, inputs):
    with fv.drop(model, method):
        return answer(model, inputs)


def layer_of(model, index=3):
    return family_for(model).layers[index]


def move(mlp):
    mlp.up_proj.weight.data = mlp.up_proj.weight.data * 1.5


def write(mlp):
    mlp.up_proj.weight.data.mul_(1.5)


def swap(mlp):
    mlp.up_proj = nn.Linear(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_an_adapter_that_is_set_again_is_the_same_recording(model, graphs_on_cpu):
    """PEFT's layers then hold another list of the same names."""
    settings = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, settings).eval()
    tuned.set_adapter("default")
    assert counted(changed(tuned, lambda: tuned.set_adapter("default"))) == (1, 2)


@pytest.mark.parametrize(("change", "recorded"), [(move, 2), (write, 1), (swap, 2)])
def test_a_weight_that_has_changed_is_read_where_it_is(model, change, recorded, graphs_on_cpu):
    """One that is elsewhere is recorded anew."""
    counts = changed(model, lambda: change(layer_of(model).mlp))
    assert counted(counts) == (recorded, 3 - recorded)


SWITCHES = {
    "off": lambda model: model.base_model.disable_adapter_layers(),
    "another": lambda model: model.set_adapter("other"),
    "merged": lambda model: model.merge_adapter(),
    "scaled": lambda model: layer_of(model).self_attn.q_proj.scaling.update(default=7.0),
    "an attribute": lambda model: setattr(layer_of(model).self_attn, "scaling", 2.0),
    "a new attribute": lambda model: setattr(layer_of(model).mlp, "fast", True),
    "in training": lambda model: layer_of(model).train(),
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_a_switched_adapter_or_attribute_is_another_recording(model, switch, graphs_on_cpu):
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["norm"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, settings).eval()
    tuned.add_adapter("other", settings)
    tuned.requires_grad_(False)
    before = adapters_of(tuned.modules()), plain_answer(tuned, V2DROP, prompts("llava", count=4)[3])[1]
    counts = changed(tuned, lambda: switch(tuned))
    assert (counts.recorded, counts.replayed) != (1, 2)
    after = adapters_of(tuned.modules()), plain_answer(tuned, V2DROP, prompts("llava", count=4)[3])[1]
    assert switch in list(SWITCHES.values())[-3:] or before[0] != after[0]
    assert switch in list(SWITCHES.values())[-2:] or not torch.allclose(before[1], after[1])


def test_a_decoder_that_is_given_ids_is_not_recorded(graphs_on_cpu):
    model, case = make("chameleon")
    with fv.drop(model, fv.V2Drop(layers=(1, 3), keep=(0.7, 0.6)), cuda_graphs=True) as trace, torch.no_grad():
        for _ in range(3):
            model(**case.batch(model, ["tit"]))
    assert sum(trace.graphs.decoder.plain.values()) == 3
    assert trace.graphs.decoder.recorded == 0


@pytest.mark.skipif("qwen3_vl_moe" not in FAMILIES, reason="needs a newer transformers")
@pytest.mark.parametrize("experts", ["eager", "batched_mm"])
def test_experts_that_run_one_by_one_are_not_recorded(experts, graphs_on_cpu):
    model = tiny.__wrapped__("qwen3_vl_moe")
    model.set_experts_implementation(experts)
    _, trace = run(model, None, prompts("qwen3_vl_moe"))
    for counts in (trace.graphs.decoder, trace.graphs.steps):
        assert (counts.recorded == 0) == (experts == "eager")
        assert not counts.failed
        assert ("eager experts" in counts.latest) == (experts == "eager")


class OwnMLP(LlamaMLP):
    """A subclass may branch on anything."""


def wrap_decoder(model, monkeypatch):
    decoder = family_for(model).text
    monkeypatch.setattr(decoder, "forward", partial(type(decoder).forward, decoder))


class Linear8bitLt(nn.Linear):
    """As bitsandbytes' own, which reads on the host which columns have outliers."""

    __module__ = "bitsandbytes.nn.modules"


def quantise(model, monkeypatch):
    monkeypatch.setattr(layer_of(model).mlp.up_proj, "__class__", Linear8bitLt)


def attend_otherwise(model, monkeypatch):
    AttentionInterface.register("own_flash", sdpa_attention_forward)
    AttentionMaskInterface.register("own_flash", sdpa_mask)
    monkeypatch.setattr(family_for(model).text.config, "_attn_implementation_internal", "own_flash")


FOREIGN = {
    "8 bit": ("Linear8bitLt", quantise),
    "another kernel": ("own_flash", attend_otherwise),
    "a subclass": ("OwnMLP", lambda model, patch: patch.setattr(layer_of(model).mlp, "__class__", OwnMLP)),
    "a forward": ("LlamaMLP", lambda model, patch: patch.setattr(LlamaMLP, "forward", lambda mlp, rows: rows)),
    "a wrapper": ("another wrapper", wrap_decoder),
    "dynamo": ("being compiled", lambda model, patch: patch.setattr(torch.compiler, "is_compiling", lambda: True)),
}


@pytest.mark.parametrize(("says", "change"), FOREIGN.values(), ids=FOREIGN)
def test_what_another_package_runs_is_not_recorded(model, says, change, graphs_on_cpu, monkeypatch):
    change(model, monkeypatch)
    _, trace = run(model, V2DROP, prompts("llava"))
    for counts in (trace.graphs.decoder, trace.graphs.steps):
        assert counted(counts) == (0, 0)
        assert all(says in why for why in counts.plain)


def test_modules_are_looked_at_once_in_a_call_of_generate(model, graphs_on_cpu, monkeypatch):
    looks, look = [], Modules.look
    monkeypatch.setattr(Modules, "look", lambda modules: looks.append(modules) or look(modules))
    asked = prompts("llava")
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for inputs in asked:
            looks.clear()
            answer(model, inputs, 8)
    assert trace.graphs.steps.replayed > 10
    assert len(looks) == len(set(looks)) == 2  # the tower, the decoder


def test_a_tower_that_is_called_behind_generate_is_looked_at_each_time(model, graphs_on_cpu, monkeypatch):
    looks, look, (inputs,) = [], Modules.look, prompts("llava", count=1)
    monkeypatch.setattr(Modules, "look", lambda modules: looks.append(modules) or look(modules))
    with fv.drop(model, V2DROP, cuda_graphs=True), torch.no_grad():
        answer(model, inputs)
        for _ in range(2):
            looks.clear()
            model.get_image_features(inputs["pixel_values"])
    assert looks


@pytest.mark.parametrize("place", ["mlp", "layer"])
def test_a_hook_that_is_put_on_is_called(model, place, graphs_on_cpu):
    seen = []
    module = layer_of(model) if place == "layer" else layer_of(model).mlp
    counts = changed(model, lambda: module.register_forward_hook(lambda *_: seen.append(1)))
    assert counted(counts) == (1, 1)
    assert seen


def test_a_wrapper_that_is_put_on_is_called(model, graphs_on_cpu):
    seen, projection = [], layer_of(model).self_attn.q_proj
    own = projection.forward

    def wrapper(rows):
        seen.append(1)
        return own(rows)

    counts = changed(model, lambda: setattr(projection, "forward", wrapper))
    assert "wrappers" in counts.latest
    assert seen


def test_another_kernel_is_taken(model, graphs_on_cpu):
    counts = changed(model, lambda: model.set_attn_implementation("eager"))
    assert counts.latest == "the first of its layout"


def test_under_autocast_it_runs_plainly(model, graphs_on_cpu):
    four = prompts("llava", count=4)
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for inputs in four[:3]:
            answer(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            _, logits = answer(model, four[3])
    with fv.drop(model, V2DROP), torch.autocast("cpu", torch.bfloat16):
        _, plain = answer(model, four[3])
    assert torch.equal(logits, plain)
    assert "autocast" in trace.graphs.decoder.latest


def test_another_size_between_two_alike(model, graphs_on_cpu):
    words = ("itt", "itt", "iitt", "itt", "iitt", "iitt", "itt")
    mixed = [batch("llava", [word], seed) for seed, word in enumerate(words)]
    plain, _ = run(model, V2DROP, mixed, cuda_graphs=False)
    replayed, trace = run(model, V2DROP, mixed)
    assert_same(replayed, plain, ROUNDING)
    assert counted(trace.graphs.decoder) == (2, 3)


def test_where_gradients_are_wanted_it_runs_plainly(model, graphs_on_cpu):
    inputs = prompts("llava", count=1)[0]
    labels = inputs["input_ids"].masked_fill(is_vision(inputs["input_ids"]), -100)
    with fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for _ in range(3):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
    assert layer_of(model).mlp.up_proj.weight.grad is not None
    assert list(trace.graphs.decoder.plain) == ["gradients are enabled, or the model is training"]


def test_a_replay_that_fails_leaves_the_plain_answer(model, graphs_on_cpu, monkeypatch):
    def fail(tape):
        raise RuntimeError("no device")

    with pytest.warns(UserWarning, match="no device"):
        counts = changed(model, lambda: monkeypatch.setattr(Recorder, "replay", fail))
    assert "a replay failed" in counts.latest


def test_a_call_that_cannot_be_copied_leaves_the_plain_answer(model, graphs_on_cpu, monkeypatch):
    def fail(region, copies):
        raise RuntimeError("no copy")

    plain, _ = run(model, V2DROP, prompts("llava"), cuda_graphs=False)
    monkeypatch.setattr(DecoderCall, "twin", fail)
    with pytest.warns(UserWarning, match="no copy"):
        answers, trace = run(model, V2DROP, prompts("llava"))
    assert_same(answers, plain, ROUNDING)
    assert trace.graphs.decoder.failed == 1


def test_a_recording_that_leaves_other_numbers_is_thrown_away(model, graphs_on_cpu, monkeypatch):
    def wrong(tape):
        tape._outputs[0].add_(1)

    monkeypatch.setattr(Recorder, "replay", wrong)
    plain, _ = run(model, V2DROP, prompts("llava"), cuda_graphs=False)
    with pytest.warns(UserWarning, match="other numbers"):
        answers, trace = run(model, V2DROP, prompts("llava"))
    assert_same(answers, plain)
    assert counted(trace.graphs.decoder) == (0, 0)


def test_a_budget_is_another_recording(model, graphs_on_cpu):
    half, third = fv.V2Drop(layers=(2,), keep=(0.5,)), fv.V2Drop(layers=(2,), keep=(0.3,))
    plain = [run(model, method, prompts("llava", count=3), cuda_graphs=False)[0] for method in (half, third)]
    replayed = [run(model, method, prompts("llava", count=3))[0] for method in (half, third)]
    for one, other in zip(replayed, plain, strict=True):
        assert_same(one, other, ROUNDING)


def test_recordings_outlive_a_context_and_serve_an_equal_method(model, graphs_on_cpu):
    run(model, fv.V2Drop(layers=(2,), keep=(0.5,)), prompts("llava", count=2))
    _, trace = run(model, fv.V2Drop(layers=(2,), keep=(0.5,)), prompts("llava", count=2))
    assert counted(trace.graphs.decoder) == (0, 2)


def test_a_replay_costs_the_host_little(model, graphs_on_cpu, monkeypatch):
    """Python calls of a whole prefill in the decoder, begin and guards with it, for each layer and in all."""
    calls, replay = [], Replayer.run

    def counting(replayer, original, *args, **kwargs):
        calls.append(0)

        def count(frame, event, argument):
            calls[-1] += event == "call"

        sys.setprofile(count)
        try:
            return replay(replayer, original, *args, **kwargs)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(Recorder, "replay", lambda tape: None)
    monkeypatch.setattr(torch, "equal", lambda one, other: True)
    monkeypatch.setattr(Replayer, "run", counting)
    with fv.drop(model, V2DROP, cuda_graphs=True), torch.no_grad():
        for inputs in prompts("llava", count=3):
            model(**inputs, use_cache=True, logits_to_keep=1)
    layers = len(family_for(model).layers)
    assert calls[-1] < 640 + 16 * layers
