"""Models inside PEFT's wrappers: adapters count wherever foveate computes something itself."""

import copy
import functools

import peft
import pytest
import torch

import foveate as fv
from foveate._transformers import with_cache
from tests.invariants.settings import EXAMPLES
from tests.invariants.test_restore import state
from tests.models import MIXED, NO_PLACEHOLDERS, batch, generate, tiny
from tests.setups.running import FIRST, METHOD, SETUPS, prefill, same_prefill

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT still reads it
    pytest.mark.filterwarnings(
        "ignore:The following rank_pattern keys:RuntimeWarning"
    ),  # of experts that are not there
]
LORA = {"target_modules": "all-linear", "init_lora_weights": False, "r": 4}  # of random weights: it changes everything
QUERIES = {**LORA, "target_modules": ["q_proj", "k_proj"]}


@pytest.fixture(scope="module")
def pairs():
    """Each family's model with an adapter everywhere, in the tower too, and one with that adapter merged."""

    @functools.cache
    def of(family):
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(copy.deepcopy(tiny(family)), peft.LoraConfig(**LORA)).eval()
        return wrapped, copy.deepcopy(wrapped).merge_and_unload().eval()

    return of


@pytest.mark.parametrize(("name", "family"), SETUPS)
def test_an_adapter_is_its_merged_weights(name, family, pairs):
    wrapped, merged = pairs(family)
    inputs = batch(family, MIXED)
    with torch.no_grad():
        wrapped(**inputs)  # transformers installs what captures hidden states when it is first needed
    before = state(wrapped)
    same_prefill(wrapped, merged, inputs, FIRST[name], atol=5e-4, rtol=1e-3)
    assert state(wrapped) == before


def test_scoring_rows_go_through_the_adapter():
    """Adapters on the queries and keys of one layer, which nothing but its scores can tell before it has run."""
    model, inputs = copy.deepcopy(tiny("llava")), batch("llava", ["tit"])
    method = fv.VisionDrop(dominant=0, contextual=0, layer_list=(3,), image_token_list=((8, 0),), reference=25)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**QUERIES, layers_to_transform=[3])).eval()
    _, kept = prefill(wrapped, inputs, method)
    with wrapped.disable_adapter():
        _, without = prefill(wrapped, inputs, method)
    assert without == prefill(tiny("llava"), inputs, method)[1]
    assert kept != without


def test_assisted_decoding_is_refused_through_the_wrapper():
    wrapped = peft.get_peft_model(copy.deepcopy(tiny("llava")), peft.LoraConfig(**QUERIES)).eval()
    inputs = batch("llava", ["tit"])
    with fv.drop(wrapped, EXAMPLES["mustdrop-2"]), pytest.raises(fv.UnsupportedError, match="candidate tokens"):
        generate(wrapped, inputs, prompt_lookup_num_tokens=3)


def test_an_adapter_of_its_own_for_each_sample():
    """One forward with two adapters, against each sample with its own; attention of samples that differ is refused."""
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(tiny("llava")), peft.LoraConfig(**QUERIES)).eval()
    wrapped.add_adapter("other", peft.LoraConfig(**QUERIES))
    wrapped.eval()
    names = ("default", "other")
    settings = {"max_new_tokens": 2, "do_sample": False, **NO_PLACEHOLDERS}
    for method, words in ((METHOD, ("tit", "titt")), (EXAMPLES["visiondrop-2"], ("titt", "titt"))):
        with fv.drop(wrapped, method) as together:
            out = wrapped.generate(**batch("llava", words), adapter_names=list(names), **settings)
        for index, (word, name) in enumerate(zip(words, names, strict=True)):
            wrapped.set_adapter(name)
            with fv.drop(wrapped, method) as alone:
                single = wrapped.generate(**batch("llava", [word]), **settings)
            assert torch.equal(out[index, -2:], single[0, -2:])
            stages = zip(together.stages, alone.stages, strict=True)
            assert all(torch.equal(a.kept[index], b.kept[0]) for a, b in stages)
    with fv.drop(wrapped, EXAMPLES["visiondrop-2"]) as trace:  # a batch of one has one adapter
        wrapped.generate(**batch("llava", ["titt"]), adapter_names=["other"], **settings)
    scored = trace.stages[0].kept[0]
    with fv.drop(wrapped, EXAMPLES["visiondrop-2"]) as trace:  # "other" is the active one now
        wrapped.generate(**batch("llava", ["titt"]), **settings)
    assert torch.equal(scored, trace.stages[0].kept[0])
    with fv.drop(wrapped, EXAMPLES["visiondrop-2"]), pytest.raises(ValueError, match="adapter_names"):
        wrapped.generate(**batch("llava", ("tit", "titit")), adapter_names=list(names), **settings)


PREFIX = pytest.param(
    peft.PrefixTuningConfig,
    marks=pytest.mark.skipif(
        "cache" in with_cache(None),
        reason="peft 0.21 hands prefixes in by the cache's old name, which transformers 5.24 ignores beside its own",
    ),
)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, PREFIX])
def test_learned_prompts(kind):
    """They stand before the text as embeddings, or as keys and values of an earlier turn."""
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(tiny("llava")), kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    wrapped.eval()
    inputs = batch("llava", ["titt"])
    settings = {"max_new_tokens": 3, "do_sample": False, **NO_PLACEHOLDERS}
    plain = wrapped.generate(**inputs, **settings)
    with fv.drop(wrapped, fv.V2Drop(layers=(1,), keep=(1.0,))):
        assert torch.equal(wrapped.generate(**inputs, **settings), plain)
    with fv.drop(wrapped, METHOD) as trace:
        wrapped.generate(**inputs, **settings)
    assert trace.vision_tokens == [25]
    assert trace.stages[0].after == (15,)
