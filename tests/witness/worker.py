"""Run examples on one tree, and keep what they did.

The same file runs on both trees, so it uses foveate's public API alone.

python -m tests.witness.worker TASK-AS-JSON
"""

import importlib.util
import json
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cache, partial
from io import StringIO
from operator import add
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import foveate as fv
from tests.witness.compare import MENDED
from tests.witness.examples import COUNTED, EMBEDDED, EXAMPLES, FILMS, stem

NEW_TOKENS = 4
IMAGE, VIDEO = 91, 92
PLACEHOLDERS = {"bad_words_ids": [[91], [92], [93], [94]]}  # a random model would draw them


def build(example):
    """A method from its name and settings."""
    name, settings = example
    if name == "chain":
        return add(*map(build, settings["members"]))
    given = {key: build(value) if key == "inner" else value for key, value in settings.items()}
    kind = fv.FinalKV if name == "finalkv" else fv.methods()[name]
    return kind(**given)


def setting(example):
    """What says to foveate how to drop: a method or its name, and perhaps a budget."""
    name, settings = example
    if name == "untouched":
        return {}
    if "budget" in settings:
        return {"method": name, "retention": settings["budget"]}
    return {"method": name if "/" in name else build(example)}


# -- what a run does -------------------------------------------------------------------------------------------


def facts(model, inputs, example):
    """What a prefill and a few decode steps did, by names."""
    method = setting(example)
    told = prefill(model, inputs, method)
    try:
        return told | generation(model, inputs, method)
    except fv.FoveateError as error:
        return told | {"refusal of generate": type(error).__name__}


def prefill(model, inputs, method):
    with fv.drop(model, **method) as trace, rotary_tables(model) as seen, torch.no_grad():
        output = model(**inputs, use_cache=True)
    return {
        **stages(trace),
        "prefill logits": output.logits,
        "prefill positions": live(trace.latest, seen),
        "cache": slots(output.past_key_values),
        MENDED: ends(inputs["input_ids"], model.config),
    }


def generation(model, inputs, method):
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, **PLACEHOLDERS}
    with fv.drop(model, **method), rotary_tables(model) as seen:
        output = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    return {
        "tokens": output.sequences,
        "decode logits": output.logits,
        "decode positions": [calls[1:] for calls in seen],
        "cache after decoding": slots(output.past_key_values),
    }


def stages(trace):
    """All that the trace says of the cuts."""
    known = ("where", "layer", "before", "after", "kept", "origin", "assign", "merged")
    told = {name: [getattr(stage, name) for stage in trace.stages] for name in known}
    latest = trace.latest
    return told | {
        "vision tokens": tuple(latest.vision_tokens),
        "per layer": latest.per_layer,
        "retention": latest.retention,
        "kv lengths": latest.kv_lengths,
    }


def slots(past):
    """Rows in each layer of a cache; 0 where it holds a state."""
    held = [getattr(layer, "keys", None) for layer in past.layers]
    return [0 if keys is None else keys.shape[-2] for keys in held]


def decoder(model):
    """The layers of the text model."""
    text = getattr(model.model, "language_model", None)
    return (model.model.text_model if text is None else text).layers


@contextmanager
def rotary_tables(model):
    """The rotary tables each layer's attention is called with: `seen[layer][call]`, (cos, sin).

    After the call, so that attentions which are asked and do not finish leave nothing.
    """
    layers = decoder(model)
    seen, hooks = [[] for _ in layers], []
    for layer, calls in zip(layers, seen, strict=True):
        if not hasattr(layer, "self_attn"):
            continue

        def note(module, args, kwargs, output, calls=calls):
            calls.append([table.clone() for table in kwargs["position_embeddings"]])

        hooks.append(layer.self_attn.register_forward_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def live(record, seen):
    """Of each layer's tables those rows that are no padding: the last ones of each sample, since it is on the left."""
    text = [rows - vision for rows, vision in zip(record.rows, record.vision_tokens, strict=True)]
    found = []
    for calls, counts in zip(seen, record.per_layer, strict=True):
        rows = [words + vision for words, vision in zip(text, counts, strict=True)]
        found.append([[last_rows(table, rows) for table in tables] for tables in calls])
    return found


def last_rows(table, rows):
    """So many last rows of each sample of (…, samples, rows, width)."""
    samples = table.expand(*table.shape[:-3], len(rows), *table.shape[-2:])
    return [samples[..., index, samples.shape[-2] - count :, :].clone() for index, count in enumerate(rows)]


# -- the embedded model ----------------------------------------------------------------------------------------

QUESTION, OTHER = "What does the text say?", "Is there a circle?"
SAID = ("text", "tokens", "notes", "vision_tokens", "spent", "missed", "looked", "kv_bytes", "choices")
SHARES = ("retention", "tokens")
COLUMNS = ("id", "answer", "retention", "vision_tokens", "tokens", "new_tokens", "notes")


def said(answer):
    """What an answer says of itself, and of the cuts."""
    return {name: getattr(answer, name) for name in SAID} | (stages(answer.trace) if answer.trace.history else {})


def ask(vlm, picture, example):
    return said(vlm.ask(picture, QUESTION, **setting(example)))


def drop(vlm, picture, example):
    text = f"USER: <image>\n{QUESTION} ASSISTANT:"
    inputs = vlm.processor(images=Image.open(picture), text=text, return_tensors="pt")
    with fv.drop(vlm.model, **setting(example)) as trace, torch.no_grad():
        logits = vlm.model(**inputs, use_cache=True, logits_to_keep=1).logits
    return stages(trace) | {"logits": logits}


def look(vlm, picture, example):
    prefix = vlm.look(picture, **setting(example))
    answers = said(prefix.ask(QUESTION)), said(prefix.ask(OTHER, choices=("yes", "no")))
    return {f"{name}, {place}": value for place, answer in enumerate(answers) for name, value in answer.items()}


def ask_inside(vlm, picture, example):
    with fv.drop(vlm.model, "v2drop"):
        return ask(vlm, picture, example)


def batch(vlm, picture, example):
    """The rows of `foveate batch`: two questions about one picture, one about another, and a file that is missing."""
    from foveate.cli import main as foveate

    how = [word for name, value in setting(example).items() for word in (f"--{name}", str(value))] or ["--untouched"]
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()), redirect_stderr(StringIO()) as errors:
        folder = Path(name)
        Image.open(picture).save(folder / "demo.png")
        Image.open(picture).rotate(90).save(folder / "turned.png")
        rows = [("demo.png", QUESTION), ("demo.png", OTHER), ("turned.png", QUESTION), ("missing.png", OTHER)]
        lines = [{"id": str(place), "image": file, "question": text} for place, (file, text) in enumerate(rows)]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
        foveate(["batch", str(folder / "rows.jsonl"), str(folder / "out"), *how])
        found = [json.loads(line) for part in folder.glob("out/part-*") for line in part.read_text().splitlines()]
    if len(found) != 3:
        raise RuntimeError(errors.getvalue() or f"{len(found)} of 3 rows were answered")
    # Parts hold six digits since.
    return {row["id"]: [round(row[name], 6) if name in SHARES else row[name] for name in COLUMNS] for row in found}


def embedded(task, example):
    """What is done with the embedded model, by names."""
    picture = str(Path(task["old"]) / "src" / "foveate" / "embedded" / "demo.png")
    ways = {"ask": ask, "drop": drop, "look": look}
    if example[1].get("budget") == 1 / 3:
        ways["batch"] = batch
    if example[0] == "untouched":
        ways = {"ask": ask, "look": look, "batch": batch, "open": ask_inside}
    return {way: partial(call, loaded(), picture, example) for way, call in ways.items()}


@cache
def loaded():
    return fv.load()  # the oldest tree has none


# -- what a run costs ------------------------------------------------------------------------------------------


@cache
def module_at(path):
    """A module by its path, once a process: both trees count with the old tree's files."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


class Operators(TorchDispatchMode):
    """Counts operators, views included."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


class Counter:
    """Operators, and waits for a device that is none, of a prefill and of a decode step."""

    def __init__(self, old, bundle):
        self.far = module_at(old / "tests" / "bench" / "far.py")
        self.waits = module_at(old / "src" / "foveate" / "bench" / "counting.py").Waits
        self.far.register()
        model = bundle["model"]
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the others have no kernel for a device that is none
        self.model, self.mrope = self.far.move(model), bundle["mrope"]

    def counts(self, inputs, example=None):
        """(operators, waits) by call."""
        with nullcontext() if example is None else fv.drop(self.model, **setting(example)):
            return self._of(inputs)

    def _of(self, inputs):
        given, step, passed = self._far(inputs), self._far(self._step(inputs)), {}

        def prefill():
            passed["cache"] = self.model(**given, use_cache=True, logits_to_keep=1).past_key_values

        def decode():
            self.model(**step, past_key_values=passed["cache"], use_cache=True, logits_to_keep=1)

        found = {}
        for name, call in (("prefill", prefill), ("decode", decode)):
            with torch.no_grad(), Operators() as operators, self.far.Far(), self.waits(self.far.__file__) as waits:
                call()
            found[name] = (operators.count, sum(waits.places.values()))
        return found

    def _step(self, inputs):
        mask = torch.cat((inputs["attention_mask"], inputs["attention_mask"].new_ones(len(inputs["input_ids"]), 1)), 1)
        ids = mask.cumsum(1)[:, -1:] - 1
        places = ids.expand(3, -1, -1) if self.mrope else ids
        return {"input_ids": torch.full_like(ids, 5), "attention_mask": mask, "position_ids": places}

    def _far(self, tensors):
        return {name: self.far.FarTensor(value) for name, value in tensors.items()}


def ends(ids, config):
    """Where a run of vision tokens ends before text, or before a frame's CLS: (samples, columns) bool."""
    vision = (ids == IMAGE) | (ids == VIDEO)
    if config.model_type == "video_llava":  # the first token of every frame is its CLS
        frame = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
        film = (ids == VIDEO).long()
        vision &= ~((film == 1) & (film.cumsum(1) % frame == 1))
    return vision & torch.cat((~vision[:, 1:], torch.zeros_like(vision[:, :1])), dim=1)


# -- a task ----------------------------------------------------------------------------------------------------


def keep(path, value, begun):
    """Save a result, whole or not at all, and say how many seconds of a processor it took."""
    words = f"{path.parent.name} {path.name} {time.process_time() - begun:.1f} s"
    print(f"  {words}", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.rename(path)
    with (path.parents[1] / "times.txt").open("a") as times:
        times.write(words + "\n")


def load(task, family):
    """A family's model and prompts; built anew, since a model that is unpickled records no hidden states."""
    bundle = torch.load(Path(task["prompts"]) / f"{family}.pt", weights_only=False)
    model = getattr(transformers, bundle["kind"])(bundle["config"]).eval()
    model.load_state_dict(bundle["weights"])
    model.generation_config = bundle["generation"]
    return {"model": model, "prompts": bundle["prompts"], "mrope": bundle["mrope"]}


@contextmanager
def errors_told(found, prompt):
    """A refusal is a fact too; any other error is kept, and never taken for a result."""
    try:
        yield
    except fv.FoveateError as error:
        found[prompt] = {"refusal": type(error).__name__}
    except Exception as error:
        found[prompt] = {"crash": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}


def run_family(task, family):
    """All examples of a family that have no result yet."""
    results = Path(task["results"]) / family
    missing = [name for name in task["families"][family] if not (results / f"{stem(name)}.pt").exists()]
    bundle = load(task, family) if missing and family != EMBEDDED else {}
    for name in missing:
        found, begun = {}, time.process_time()
        ways = embedded(task, EXAMPLES[name]) if family == EMBEDDED else tiny(bundle, EXAMPLES[name])
        for way, call in ways.items():
            with errors_told(found, way):
                found[way] = call()
        keep(results / f"{stem(name)}.pt", found, begun)


def tiny(bundle, example):
    """What is done with a family's tiny model, by prompts; a method of films sees films alone."""
    prompts = bundle["prompts"].items()
    shown = {name: inputs for name, inputs in prompts if example[0] not in FILMS or name == "film"}
    return {name: partial(facts, bundle["model"], inputs, example) for name, inputs in shown.items()}


def count_family(task, family):
    """The same for operators and waits."""
    results = Path(task["results"]) / family
    missing = [name for name in task["families"][family] if not (results / f"{stem(name)}.counts").exists()]
    if not missing:
        return
    bundle = load(task, family)
    counter = Counter(Path(task["old"]), bundle)
    prompts = {name: inputs for name, inputs in bundle["prompts"].items() if name in COUNTED}
    for prompt, inputs in prompts.items():
        with errors_told({}, prompt):
            counter.counts(inputs)  # what a model works out once is worked out here
    for name in missing:
        found, begun = {}, time.process_time()
        for prompt, inputs in prompts.items():
            with errors_told(found, prompt):
                found[prompt] = counter.counts(inputs, EXAMPLES[name])
        keep(results / f"{stem(name)}.counts", found, begun)


def main(task):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    where = Path(fv.__file__).resolve()
    assert where.is_relative_to(Path(task["root"]).resolve() / "src"), f"foveate came from {where}"
    for family in task["families"]:
        run_family(task, family)
    for family in task["families"] if task["counts"] else ():
        count_family(task, family)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
