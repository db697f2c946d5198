"""Odd values for every argument of the public calls: taken for what they are, or refused before the model runs."""

import inspect
import itertools
import math
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.rows import RowAsking
from foveate.bench.paired import race
from foveate.cost._cost import cost
from foveate.eval.evaluation import evaluate
from foveate.eval.plan import Plan
from foveate.video import read
from tests.cli.conftest import save_tiny_llava
from tests.films import film

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ODD = {
    "nan": math.nan, "inf": math.inf, "numpy's inf": np.float32("inf"), "a text": "3", "True": True, "None": None,
    "-1": -1, "0": 0, "1.5": 1.5, "numpy's 3": np.int64(3), "numpy's 0.5": np.float32(0.5), "[]": [],
    "an object": object(),
}  # fmt: skip
COUNT, FLAG, NONE, TEXT, EMPTY = {"numpy's 3"}, {"True"}, {"None"}, {"a text"}, {"[]"}
WHOLE = {*COUNT, "0"}
SHARE = {"numpy's 0.5"}
POSITIVE = {*COUNT, *SHARE, "1.5"}
MEDIA = {"frames": COUNT | NONE, "fps": POSITIVE | NONE, "fit": set()}
BUDGET = {"tokens": POSITIVE | NONE, "retention": SHARE | NONE}
DECODING = {
    "max_new_tokens": COUNT, "num_beams": COUNT, "stop": EMPTY, "temperature": POSITIVE | {"0"},
    "top_p": SHARE | NONE, "top_k": COUNT | NONE, "seed": WHOLE | NONE | {"-1"},
}  # fmt: skip
SHORT = {"max_new_tokens": 1}


class Calls:
    """The public calls, each with one argument that a test sets, and others that fit."""

    def __init__(self, folder):
        self.folder, self.numbers = folder, itertools.count()
        self.model = save_tiny_llava(folder / "model", layers=6)
        self.vlm, self.drawn = fv.load(self.model), fv.load()
        self.forwards = []  # an entry for each
        for vlm in (self.vlm, self.drawn):
            vlm.model.register_forward_pre_hook(lambda *_: self.forwards.append(1))
        self.picture = Image.effect_noise((84, 84), 30).convert("RGB")
        self.clip = str(film(folder / "clip.mp4", 6))
        (folder / "in").mkdir()
        self.picture.save(folder / "in" / "a.png")
        self.look = self.vlm.look(self.picture, method="vidcom2")
        self.two = self.look.see(self.picture)
        self.prompt = self.vlm.prepare(self.picture, "What ?")
        self.samples = [(Image.effect_noise((84, 84), 10 + number).convert("RGB"), "What ?") for number in range(9)]
        with fv.drop(self.vlm.model, "v2drop") as self.trace:
            self.vlm.model.generate(**self.prompt.inputs, **SHORT)

    def shown(self, values):
        return self.clip if {*values} & {"frames", "fps"} else self.picture

    def sampled(self, values):
        """With what else a setting of dropping, sampling or a budget makes sense."""
        if {*values} & {"top_p", "top_k", "seed"}:
            return {"temperature": 1.0}
        return {"method": "vidcom2"} if {*values} & {"tokens", "retention", "sure"} else {}

    def finished(self, reply):
        if isinstance(reply, fv.Answer):
            return
        for _ in reply:
            pass

    def ask(self, **values):
        usual = {"media": self.shown(values), "prompt": "What ?"} if "messages" not in values else {}
        self.finished(self.vlm.ask(**usual | ({} if "choices" in values else SHORT) | self.sampled(values) | values))

    def ask_many(self, **values):
        usual = {"questions": [(self.shown(values), "What ?")]} | SHORT
        self.finished(self.vlm.ask_many(**usual | self.sampled(values) | values))

    def prepare(self, **values):
        usual = {"media": self.shown(values), "prompt": "What ?"} if "messages" not in values else {}
        self.vlm.prepare(**usual | values)

    def look_at(self, **values):
        usual = {} if "messages" in values else {"media": self.shown(values)}
        self.vlm.look(**usual | self.sampled(values) | values)

    def method_for(self, **values):
        self.vlm.method_for(**{"method": "vidcom2", "vision_tokens": 36} | values)

    def answer(self, **values):
        usual = {"prompt": self.prompt, "method": "vidcom2", "generation": fv.Generation(**SHORT)}
        self.vlm.answer(**usual | values)

    def see(self, **values):
        self.look.see(**{"medium": self.shown(values)} | values)

    def forget(self, **values):
        self.two.forget(**values)

    def prefix_ask(self, **values):
        usual = {"question": "What ?"} | ({} if "choices" in values else SHORT)
        self.finished(self.look.ask(**usual | self.sampled(values) | values))

    def prefix_ask_many(self, **values):
        self.finished(self.look.ask_many(**{"questions": ["What ?"]} | SHORT | self.sampled(values) | values))

    def drop(self, **values):
        with fv.drop(**{"model": self.vlm.model, "method": "vidcom2"} | values):
            self.vlm.model.generate(**self.prompt.inputs, **SHORT)

    def apply(self, **values):
        fv.apply(**{"model": self.vlm.model, "method": "vidcom2"} | values)
        fv.remove(self.vlm.model)

    def remove(self, **values):
        fv.remove(**values)

    def load(self, **values):
        fv.load(**{"name": self.model} | values)

    def vlm_of(self, **values):
        fv.VLM(**{"model": self.vlm.model, "processor": self.vlm.processor} | values)

    def cost(self, **values):
        fv.cost(**{"config": self.vlm.model.config, "text_tokens": 9, "vision_tokens": 36} | values)

    def tune(self, **values):
        usual = {"model": self.vlm, "samples": self.samples, "method": fv.VidCom2(), "cache": self.folder / "tuned"}
        budget = {} if {*values} & {"retention", "flops", "agreement", "tasks"} else {"tokens": 9}
        fv.tune(**usual | SHORT | budget | ({"agreement": 0.5} if "tasks" in values else {}) | values)

    def plan(self, **values):
        Plan(**values)

    def evaluate(self, **values):
        plan = Plan(methods=(), baselines=False, cache=self.folder / "eval", max_new_tokens=1)
        evaluate(**{"vlm": self.drawn, "tasks": ["colour"], "plan": plan, "count": 1} | values)

    def job(self, **values):
        asking = RowAsking(model=str(self.model), **SHORT)
        usual = {"input": self.folder / "in", "out": self.folder / f"out{next(self.numbers)}", "question": "What ?"}
        run(Job(**usual | {"asking": asking} | values))

    def asking(self, **values):
        self.job(asking=RowAsking(**{"model": str(self.model)} | SHORT | values))

    def race(self, **values):
        methods = {"random": fv.Random(retention=0.5)}
        usual = {"model": self.vlm.model, "inputs": self.prompt.inputs, "methods": methods, "new_tokens": 1, "pairs": 2}
        race(**usual | values)

    def trace_show(self, **values):
        self.trace.show(**{"images": self.picture} | values)

    def kept_by_frame(self, **values):
        self.trace.kept_by_frame(**values)

    def read(self, **values):
        read(**{"path": self.clip} | values)

    def preset(self, **values):
        fv.preset(**values)

    def register_method(self, **values):
        fv.register_method(**values)

    def register_family(self, **values):
        fv.register_family(**values)

    def second_look(self, **values):
        fv.SecondLook(**{"method": fv.VidCom2(tokens=9), "sure": 0.5} | values)

    def method_plan(self, **values):
        fv.V2Drop().plan(**{"depth": 6, "sizes": [36]} | values)


BEGUN = {"system": NONE | TEXT, **MEDIA}
ASKED = {"method": NONE, "sure": {"0", "None"} | SHARE, **BEGUN, **BUDGET, **DECODING}
TAKEN = {
    "ask": (fv.VLM.ask, {
        "media": EMPTY, "prompt": TEXT, "messages": set(), "choices": EMPTY, "stream": FLAG, **ASKED,
    }),
    "ask_many": (fv.VLM.ask_many, {"questions": EMPTY, "batch_size": COUNT, "choices": EMPTY, **ASKED}),
    "prepare": (fv.VLM.prepare, {"media": EMPTY, "prompt": TEXT, "messages": set(), "protocol": set(), **BEGUN}),
    "look_at": (fv.VLM.look, {"media": set(), "messages": set(), "method": NONE, **BEGUN, **BUDGET}),
    "method_for": (fv.VLM.method_for, {"method": NONE, "vision_tokens": WHOLE, **BUDGET}),
    "answer": (fv.VLM.answer, {"prompt": set(), "method": NONE, "generation": NONE, "first": FLAG, **BUDGET}),
    "see": (fv.Prefix.see, {
        "medium": set(), "after": EMPTY, "at": POSITIVE | NONE | {"0", "-1"}, "memory": COUNT | NONE,
        "with_texts": FLAG, **MEDIA, **BUDGET,
    }),
    "forget": (fv.Prefix.forget, {"picture": {"0", "-1"}, "with_texts": FLAG}),
    "prefix_ask": (fv.Prefix.ask, {"question": TEXT, "after": EMPTY, "choices": EMPTY, "stream": FLAG, **DECODING}),
    "prefix_ask_many": (fv.Prefix.ask_many, {
        "questions": EMPTY, "batch_size": COUNT, "choices": EMPTY, **DECODING,
    }),
    "drop": (fv.drop, {
        "model": set(), "method": set(), "resources": NONE, "cuda_graphs": set(), "extensions": EMPTY, **BUDGET,
    }),
    "apply": (fv.apply, {"model": set(), "method": set(), "resources": NONE, "extensions": EMPTY, **BUDGET}),
    "remove": (fv.remove, {"model": set()}),
    "load": (fv.load, {
        "name": set(), "device": set(), "dtype": set(), "attention": set(), "weights": FLAG, "cuda_graphs": set(),
    }),
    "vlm_of": (fv.VLM, {"model": set(), "processor": set(ODD), "name": TEXT, "cuda_graphs": set()}),
    "cost": (cost, {
        "config": set(), "text_tokens": WHOLE, "vision_tokens": WHOLE | EMPTY, "method": NONE, "attention": set(),
        "dtype": NONE, "tower_images": WHOLE | NONE, "grids": NONE | EMPTY, "videos": NONE | FLAG | EMPTY,
        "tokens": NONE, "tower_tokens": NONE | EMPTY, "tower_rows": NONE | EMPTY,
    }),
    "tune": (fv.tune, {
        "model": set(), "samples": set(), "agreement": SHARE, "method": NONE, "tokens": POSITIVE, "retention": SHARE,
        "flops": SHARE, "given": EMPTY, "task": TEXT, "tasks": EMPTY, "seed": WHOLE | {"-1"}, "max_new_tokens": COUNT,
        "workers": WHOLE, "cache": NONE | TEXT, "listener": NONE,
    }),
    "plan": (Plan, {
        "methods": EMPTY, "tokens": EMPTY, "retention": EMPTY, "flops": EMPTY, "draws": COUNT, "baselines": FLAG,
        "cache": NONE | TEXT, "workers": WHOLE, "max_new_tokens": COUNT,
    }),
    "evaluate": (evaluate, {
        "vlm": set(), "tasks": EMPTY, "plan": NONE, "count": COUNT, "seeds": set(), "listener": NONE,
    }),
    "job": (Job, {
        "input": set(), "out": set(), "asking": set(), "question": TEXT, "columns": set(), "parts": set(),
        "part_rows": COUNT, "limit": WHOLE | NONE,
    }),
    "asking": (RowAsking, {
        "model": set(), "device": set(), "dtype": set(), "attention": set(), "cuda_graphs": set(), "method": NONE,
        "max_new_tokens": COUNT, "batch_size": COUNT, "choices": EMPTY, "within": NONE | TEXT, "remote": NONE,
        **BEGUN,
    }),
    "race": (race, {
        "model": set(), "inputs": set(), "methods": set(), "new_tokens": COUNT, "pairs": COUNT, "after": set(),
    }),
    "trace_show": (fv.Trace.show, {"images": set(), "sample": {"0"}}),
    "kept_by_frame": (fv.Trace.kept_by_frame, {"sample": {"0"}}),
    "read": (read, {
        "path": set(), "frames": COUNT | NONE, "fps": POSITIVE | NONE, "start": SHARE | NONE | {"0"},
        "end": POSITIVE | NONE,
    }),
    "preset": (fv.preset, {"name": set()}),
    "register_method": (fv.register_method, {"kind": set()}),
    "register_family": (fv.register_family, {"kind": set()}),
    "second_look": (fv.SecondLook, {"method": set(), "sure": SHARE | {"0"}, "promise": NONE}),
    "method_plan": (fv.Method.plan, {
        "depth": COUNT, "sizes": EMPTY, "grids": NONE | EMPTY, "videos": NONE | EMPTY,
    }),
}  # fmt: skip
"""For each call and argument: the odd values that are right for it."""
BY_SIZE = {("see", "memory"), ("tune", "tokens"), ("cost", "vision_tokens"), ("method_plan", "depth")}
"""Numbers that are right, but too small or large for this input."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return Calls(tmp_path_factory.mktemp("calls"))


@pytest.mark.parametrize("name", TAKEN)
def test_odd_values_are_taken_for_what_they_are_or_refused_before_a_forward(calls, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a text may be the name of a folder to write to, or of one that another case wrote
    wrong = []
    for (argument, right), (word, value) in itertools.product(TAKEN[name][1].items(), ODD.items()):
        calls.forwards.clear()
        try:
            getattr(calls, name)(**{argument: value})
            fits = word in right
            outcome = "taken"
        except fv.BudgetError:
            # Whether a random model's answers agree often enough is not what is asked here.
            fits, outcome = argument in ("tokens", "retention", "flops") or name == "tune", "no budget"
        except fv.FoveateError as error:
            fits = (name, argument) in BY_SIZE if word in right else not calls.forwards
            outcome = f"{str(error)!r:.80}, after {len(calls.forwards)} forwards"
        except Exception as error:
            fits, outcome = False, f"{type(error).__name__}: {error!s:.80}"
        if not fits:
            wrong.append(f"{argument}={word}: {outcome}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", TAKEN)
def test_no_argument_is_left_out(name):
    call, tried = TAKEN[name]
    names = set()
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names |= set(get_args(parameter.annotation)[0].__annotations__)
        elif parameter.name != "self":
            names.add(parameter.name)
    assert names == set(tried)
