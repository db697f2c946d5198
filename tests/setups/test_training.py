"""Training inside a context: every set-up has the gradients of the plain one, or is refused; labels; PEFT."""

import copy
import functools
import inspect
from contextlib import contextmanager, nullcontext

import peft
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate import embedded
from foveate.contract import Attention, Cut, Hidden, LayerStage, Method
from tests.gradients import (
    Float64,
    assert_alike,
    float64_model,
    gradients_now,
    gradients_of,
    in_float64,
    pad_right,
    step,
    text_labels,
)
from tests.invariants import facts
from tests.invariants.settings import EVERYTHING, FILMS, KEEP_ALLS, METHODS, runs_on, works
from tests.invariants.test_generation import switch
from tests.models import batch, is_vision, tiny
from tests.setups.test_autocast import CUTS, autocast

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still reads it
KINDS = {"reentrant": {"use_reentrant": True}, "other": {"use_reentrant": False}}
BY_ATTENTION = ("prumerge", "prumerge_plus")
"""Methods that weight rows by the tower's attention."""

# -- the matrix ----------------------------------------------------------------------------------------------------

HOSTS = ("llava", "qwen2_5_vl", "gemma3", "embedded")
"""Pictures of one size; M-RoPE and windows in the tower; sliding windows and masks of its own; trained weights."""
TEXTS = (
    "USER: <image>\nWhat does the text say? ASSISTANT: 36KUM</s>",
    "USER: <image>\nHow many shapes are there in the picture? ASSISTANT: 3</s>",
)
"""What the embedded model is asked about its picture, with answers."""


@functools.cache
def host_model(host, dtype):
    """A model in training mode; the embedded model's tower is frozen."""
    if host != "embedded":
        return float64_model(host) if dtype == torch.float64 else copy.deepcopy(tiny(host)).train()
    model, _ = embedded.load(dtype=dtype)
    tower_of(model).requires_grad_(False)
    return model.train()


def tower_of(model):
    return getattr(model.model, "vision_tower", None) or model.model.visual


@functools.cache
def prompts(host, name):
    """A batch of two samples, and each of them alone."""
    if host == "embedded":
        _, processor = embedded.load()
        settings = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        return [
            dict(processor(text=list(texts), images=[Image.open(embedded.picture())] * len(texts), **settings))
            for texts in (TEXTS, TEXTS[:1], TEXTS[1:])
        ]
    words = ("titt", "tit") if works(name, host) else ("tvtt", "tvt")
    return [batch(host, chosen) for chosen in (words, words[:1], words[1:])]


class Cell:
    """A setting of a method on a host."""

    def __init__(self, host, name, dtype=torch.float64):
        self.host, self.name, self.dtype = host, name, dtype
        self.model = host_model(host, dtype)
        self.method = setting_of(host, name)
        self.batch, *self.alone = prompts(host, name)

    def step(self, inputs=None, method=None, **settings):
        """The loss, the gradients and the trace of a step."""
        inputs = self.prepare(self.batch if inputs is None else inputs)
        return step(self.model, inputs, method or self.method, self.labels(inputs), **settings)

    def prepare(self, inputs):
        """In the model's dtype; norms of keys depend on positions, so these are then as `generate` gives them."""
        if facts.reads_key_norms(self.method) and not hasattr(self.model.model, "get_rope_index"):
            inputs = inputs | {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
        return in_float64(inputs) if self.dtype == torch.float64 else inputs

    def labels(self, inputs):
        return text_labels(inputs, 3 if self.host == "embedded" else None)


def setting_of(host, name):
    """The setting of a name; on the embedded model a third of the tokens, where the method takes a budget."""
    method = METHODS[name]
    if host == "embedded" and hasattr(method, "retention"):
        return type(method)(retention=1 / 3)
    return method


def kept_tokens(trace):
    return [[kept.tolist() for kept in stage.kept] for stage in trace.stages]


def check_plain(cell):
    """Backward inside the context and a cache change no bit."""
    loss, expected, _ = cell.step()
    inputs = cell.prepare(cell.batch)
    with fv.drop(cell.model, cell.method):
        again = cell.model(**inputs, labels=cell.labels(inputs)).loss
        gradients = gradients_of(cell.model, again)
    assert torch.equal(again, loss)
    assert_alike(gradients, expected, most=0)


def check_checkpointing(cell, kind, tower):
    if cell.host != "embedded":
        tower_of(cell.model).requires_grad_(tower == "trained")
    try:
        loss, expected, _ = cell.step()
        with checkpointing(cell.model, kind):
            if kind == "reentrant" and tower == "trained" and cell.name.rpartition("-")[0] in BY_ATTENTION:
                with pytest.raises(fv.UnsupportedError, match="reentrant"):
                    cell.step()
                return
            same, gradients, _ = cell.step()
    finally:
        if cell.host != "embedded":
            tower_of(cell.model).requires_grad_(True)
    assert torch.equal(same, loss)
    assert_alike(gradients, expected)


def check_autocast(cell):
    """What is kept and merged is what float32 scores of the same rows say, and keep-all is the untouched model."""
    cell = Cell(cell.host, cell.name, torch.float32)
    with autocast():
        loss, gradients, trace = cell.step()
        with pytest.MonkeyPatch.context() as patch:
            for owner, function in CUTS:
                patch.setattr(owner, function, autocast(enabled=False)(getattr(owner, function)))
            same, expected, exact = cell.step()
    assert loss.isfinite()
    assert torch.equal(loss, same)
    assert kept_tokens(trace) == kept_tokens(exact)
    assert_alike(gradients, expected, most=0)
    if cell.name.endswith("-0"):
        with autocast():
            whole, gradients, _ = cell.step(method=KEEP_ALLS[cell.name.rpartition("-")[0]])
            loss = cell.model(**cell.prepare(cell.batch), labels=cell.labels(cell.batch), use_cache=False).loss
            expected = gradients_of(cell.model, loss)
        assert torch.equal(whole, loss)
        assert_alike(gradients, expected, most=0)


def check_accumulation(cell):
    """Two micro-batches in one context are the sum of both alone, and the batch of both."""
    count = int((cell.labels(cell.batch) != -100).sum())
    with Float64():
        alone = [cell.step(inputs, num_items_in_batch=count)[1] for inputs in cell.alone]
        expected = {weight: sum(part[weight] for part in alone if weight in part) for weight in {*alone[0], *alone[1]}}
        cell.model.zero_grad(set_to_none=True)
        with fv.drop(cell.model, cell.method):
            for inputs in map(cell.prepare, cell.alone):
                cell.model(**inputs, labels=cell.labels(inputs), num_items_in_batch=count).loss.backward()
        assert_alike(gradients_now(cell.model), expected, most=0)
        assert_alike(cell.step(num_items_in_batch=count)[1], expected)


def check_padding(cell):
    """Padding on the left or on the right: the same tokens, loss and gradients."""
    with Float64():
        loss, expected, trace = cell.step()
        same, gradients, right = cell.step(pad_right(cell.host, cell.batch))
    assert kept_tokens(right) == kept_tokens(trace)
    torch.testing.assert_close(same, loss, rtol=1e-12, atol=0)
    assert_alike(gradients, expected)


CHECKPOINTING = [(kind, tower) for tower in ("trained", "frozen") for kind in KINDS]
SETUPS = {
    "plain": check_plain,
    "accumulation": check_accumulation,
    "padding": check_padding,
    "autocast": check_autocast,
    **{
        f"{kind} checkpointing, tower {tower}": functools.partial(check_checkpointing, kind=kind, tower=tower)
        for kind, tower in CHECKPOINTING
    },
}


def cells():
    """Set-ups, hosts and settings: all of them, on the embedded model one of each method; or a few of each."""
    *others, autocast = list(SETUPS)[:4]
    checkpointing = list(SETUPS)[4:]
    of_embedded = [setup for setup in SETUPS if "trained" not in setup]
    drawn = []
    for place, name in enumerate(METHODS):
        hosts = [host for host in HOSTS[:-1] if runs_on(name, host)]
        turns = (others[place % len(others)], autocast, checkpointing[place % len(checkpointing)])
        if EVERYTHING:
            drawn += [(setup, host, name) for setup in SETUPS for host in hosts]
            if name.endswith("-0") and name not in FILMS:
                drawn += [(setup, "embedded", name) for setup in of_embedded]
        else:
            first = place // len(others)  # so that every set-up meets every host
            drawn += [(setup, hosts[(first + turn) % len(hosts)], name) for turn, setup in enumerate(turns)]
    of_embedded.remove("autocast")  # bfloat16 takes a minute there on a CPU
    few = ("divprune-0", "v2drop-0", "vidcom2-0", "random-0", "visionzip-0")
    return drawn if EVERYTHING else drawn + list(zip(of_embedded, ["embedded"] * len(few), few, strict=True))


@pytest.mark.parametrize(("setup", "host", "name"), cells())
def test_gradients_of_every_set_up_are_those_of_the_plain_one(setup, host, name):
    SETUPS[setup](Cell(host, name))


# -- checkpointing -------------------------------------------------------------------------------------------------


@contextmanager
def checkpointing(model, kind):
    switch(model, "enable", KINDS[kind])
    try:
        yield
    finally:
        switch(model, "disable")


def trained(model, method, kind=None):
    """The loss, and the gradients by name."""
    inputs = in_float64(batch("llava", ("titt", "tit")))
    with nullcontext() if kind is None else checkpointing(model, kind):
        return step(model, inputs, method, text_labels(inputs))[:2]


@pytest.fixture
def model():
    return float64_model("llava")


def test_weights_of_a_merge_keep_their_gradient(model):
    _, gradients = trained(model, METHODS["prumerge-0"])
    assert gradients["model.vision_tower.encoder.layers.1.self_attn.q_proj.weight"].abs().max() > 0


@pytest.mark.parametrize("layer", ["ran", "next"])
def test_weights_of_others_keep_their_gradient_too(model, layer):
    signal = Attention(rows="last", layer=layer)

    class ByAttention(Method):
        name = "by_attention"

        def stages(self, shape):
            return (LayerStage(2, reads=(Hidden(), signal), keep=0.5, pick=self.pick),)

        def pick(self, view, count):
            rows = view.hidden * (1 + 100 * view[signal][:, None])
            kept = torch.arange(count)
            return Cut.take(kept, len(view)).with_rows(rows[:count])

    _, expected = trained(model, ByAttention())
    assert_alike(trained(model, ByAttention(), "other")[1], expected)
    if layer == "next":  # computed outside the layer that is checkpointed
        assert_alike(trained(model, ByAttention(), "reentrant")[1], expected)
    else:
        with pytest.raises(fv.UnsupportedError, match="reentrant"):
            trained(model, ByAttention(), "reentrant")


@pytest.mark.parametrize("name", ["fastv-0", "prumerge-0", "thintower-0", "pixelprune-0"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_with_a_frozen_tower_that_is_checkpointed(name, kind):
    """PEFT lets embeddings require gradients, the tower's too, so frozen blocks run again as well."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=".*language_model.*(q_proj|v_proj)", init_lora_weights=False, r=2)
    model = peft.get_peft_model(copy.deepcopy(float64_model("llava")), lora).train()
    model.enable_input_require_grads()
    _, expected = trained(model, METHODS[name])
    _, gradients = trained(model, METHODS[name], kind)
    assert expected
    assert_alike(gradients, expected)


# -- labels --------------------------------------------------------------------------------------------------------


def labelled(model, labels, method="divprune", retention=0.5, **more):
    with fv.drop(model, method, retention=retention):
        return model(**batch("llava", ["titt", "tit"]), labels=labels, **more).loss


@pytest.fixture
def input_ids():
    return batch("llava", ["titt", "tit"])["input_ids"]


@pytest.mark.parametrize("method", ["divprune", "v2drop", "averagepool", "pixelprune"])
@pytest.mark.parametrize("gradients", [True, False])
def test_labels_on_vision_tokens_are_refused_and_the_message_masks_them(method, gradients, input_ids):
    model, labels, retention = tiny("llava"), input_ids.clone(), None if method == "pixelprune" else 0.5
    with torch.set_grad_enabled(gradients):
        with pytest.raises(fv.UnsupportedError, match="labels are on vision") as caught:
            labelled(model, labels, method, retention)
        line = str(caught.value).partition("Mask them: ")[2].partition(". With TRL")[0]
        exec(line, {"labels": labels, "input_ids": input_ids, "torch": torch})
        assert torch.equal(labels, input_ids.masked_fill(is_vision(input_ids), -100))
        assert labelled(model, labels, method, retention).isfinite()


def test_labels_are_also_seen_by_position_through_peft_and_shifted(input_ids):
    model = tiny("llava")
    inputs = batch("llava", ["titt", "tit"])
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(fv.UnsupportedError, match="vision"):
        labelled(wrapped, input_ids.clone())
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    by_place = [inputs.get(name) for name in names[: names.index("labels")]]
    with fv.drop(model, "divprune"), pytest.raises(fv.UnsupportedError, match="vision"):
        model(*by_place, input_ids)
    masked = input_ids.masked_fill(is_vision(input_ids), -100)
    shifted = [
        torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous() for labels in (masked, input_ids)
    ]
    assert labelled(model, masked, shift_labels=shifted[0], num_items_in_batch=9).isfinite()
    with pytest.raises(fv.UnsupportedError, match="vision"):
        labelled(model, masked, shift_labels=shifted[1])


def test_labels_that_no_drop_can_spoil_pass(input_ids):
    model = tiny("llava")
    with torch.no_grad():
        plain = model(**batch("llava", ["titt", "tit"]), labels=input_ids).loss
        assert torch.equal(labelled(model, input_ids, "v2drop", 1.0), plain)
        assert labelled(model, input_ids, fv.ThinTower(keep=0.5), None).isfinite()
    with fv.drop(model, "divprune"), torch.no_grad():
        assert model(**batch("llava", ["titt"]), labels=None).loss is None
