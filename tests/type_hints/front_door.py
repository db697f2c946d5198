"""What a type checker knows of the front door. `make check` reads these lines; nothing runs them."""

from collections.abc import Iterator
from typing import Any, Literal, assert_type

import foveate as fv
from foveate.ask import Stream
from foveate.batch import Predictor


def ask(vlm: fv.VLM, stream: bool) -> None:
    assert_type(vlm.ask("cat.jpg", "What is it?"), fv.Answer)
    assert_type(vlm.ask("cat.jpg", "What is it?", method="v2drop", retention=0.3, max_new_tokens=8), fv.Answer)
    assert_type(vlm.ask("cat.jpg", "Signed?", choices=["yes", "no"], method=fv.V2Drop(tokens=64)), fv.Answer)
    assert_type(vlm.ask(messages=[{"role": "user", "content": "What is it?"}], fit="pad"), fv.Answer)
    assert_type(vlm.ask("cat.jpg", "What is it?", stream=True, frames=8, fps=2.0), Stream)
    assert_type(vlm.ask("cat.jpg", "What is it?", stream=stream), fv.Answer | Stream)
    assert_type(vlm.ask_many([("a.png", "What is it?")], batch_size=4, seed=1), Iterator[fv.Answer])
    vlm.ask("cat.jpg", "What is it?", retension=0.3)  # type: ignore[call-overload]


def look(vlm: fv.VLM, stream: bool) -> None:
    prefix = vlm.look("cat.jpg", method="v2drop", retention=0.2)
    assert_type(prefix, fv.Prefix)
    assert_type(vlm.look(messages=[{"role": "user", "content": "What is it?"}]), fv.Prefix)
    assert_type(prefix.ask("What is it?", after=["Who?", "A cat."]), fv.Answer)
    assert_type(prefix.ask("What is it?", stream=True), Stream)
    assert_type(prefix.ask("What is it?", stream=stream), fv.Answer | Stream)
    assert_type(prefix.ask_many(["What is it?"], temperature=0.5), Iterator[fv.Answer])
    vlm.look("cat.jpg", max_new_tokens=8)  # type: ignore[call-arg]


def answer(given: fv.Answer, stream: Stream) -> None:
    assert_type(given.text, str)
    assert_type(given.retention, float)
    assert_type(given.saved.prefill_flops, float | None)
    assert_type(given.saved.kv_bytes, float)
    assert_type(given.trace, fv.Trace)
    assert_type(stream.answer, fv.Answer)
    assert_type(next(stream), str)


def tune(vlm: fv.VLM) -> None:
    samples = [("a.png", "What is it?")]
    assert_type(fv.tune(vlm, samples, method="v2drop", tokens=64, workers=2, cache="mine"), fv.Tuned)
    assert_type(fv.tune(vlm, samples, agreement=0.98, method="divprune"), fv.SecondLook)
    look = fv.SecondLook(method=fv.V2Drop(tokens=64), sure=0.9)
    assert_type(vlm.ask("a.png", "What is it?", method=look), fv.Answer)
    assert_type(vlm.ask("a.png", "What is it?", method="v2drop", sure=0.9).unsure, fv.Answer | None)
    fv.tune(vlm, samples, tokens=64, cahce="mine")  # type: ignore[call-overload]


def predict(vlm: fv.VLM) -> None:
    stage = Predictor("embedded", prompt="Signed?", method="v2drop", retention=0.3, choices=["yes", "no"], batch_size=4)
    assert_type(stage({"image": ["a.png"]})["answer"], list[Any])
    Predictor(vlm=vlm, share=0.5, metod="v2drop")  # type: ignore[call-arg]


def others(vlm: fv.VLM) -> None:
    assert_type(fv.load("embedded", device="cpu"), fv.VLM)
    with fv.drop(vlm.model, "v2drop", retention=0.3) as trace:
        assert_type(trace, fv.Trace)
    assert_type(fv.apply(vlm.model, fv.V2Drop()), fv.Trace)
    assert_type(fv.cost(vlm.model.config, text_tokens=40, vision_tokens=576), fv.Cost)
    assert_type(fv.methods(), dict[str, type[fv.Method]])
    assert_type(fv.preset("v2drop/llava-1.5-7b/192"), fv.Method)
    assert_type(fv.V2Drop(tokens=64) + fv.FinalKV(), fv.Method)
    assert_type(fv.V2Drop.for_budget(vlm.model, tokens=64), fv.V2Drop)
    fit: Literal["own", "pad"] = "pad"
    assert_type(vlm.ask("cat.jpg", "What is it?", fit=fit), fv.Answer)
