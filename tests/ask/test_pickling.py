"""What users are handed goes to another process and back; of what holds a model they are told that it does not."""

import pickle

import pytest
import torch

import foveate as fv
from foveate import embedded, testing, video
from foveate.ask import Stream
from foveate.cost import Cost
from foveate.naming import method_of
from tests.films import film
from tests.tuning.presets import preset_of

QUESTION = embedded.QUESTION
METHOD = fv.V2Drop(retention=0.5)


@pytest.fixture(scope="module")
def handed(small, demo, tmp_path_factory):
    """One or more of every class that users are handed."""
    with fv.drop(small.model, METHOD) as trace:
        small.model(**small.prepare(demo, QUESTION).inputs)
    answers = [small.ask(demo, QUESTION, method=name) for name in ("v2drop", "visionzip", "prumerge", "thintower")]
    answers.append(small.ask(demo, QUESTION, method="v2drop", sure=1.0, max_new_tokens=2))
    answers.append(small.look(demo, method=METHOD).ask(QUESTION))
    answers += small.ask_many([(demo, QUESTION), (demo, "And what is it?")], method="read")
    checked = testing.Checked({"model": "small"}, 0.1, (testing.Row("as it is", "passed", 0.0),))
    return [
        *answers, trace, trace.stages[0], answers[0].cost, fv.Cut.keep(torch.tensor([True, False])),
        fv.drop_rows(torch.rand(4, 8), "divprune", tokens=2),
        fv.Generation(num_beams=3), fv.Question(embedded.picture(), QUESTION), fv.SecondLook(method=METHOD, sure=0.5),
        method_of("thintower+v2drop"), preset_of(METHOD), *fv.presets().values(),
        *(kind() for kind in fv.methods().values()),
        *(getattr(fv, name)("a reason") for name in fv.__all__ if name.endswith("Error")),
        video.read(film(tmp_path_factory.mktemp("films") / "film.mp4"), frames=3), checked, checked.rows[0],
        testing.tiny_model.__wrapped__("llava"),  # a new one: asked for hidden states, transformers leaves hooks there
    ]  # fmt: skip


def told(thing):
    """What it says of itself, in plain values."""
    if isinstance(thing, fv.Trace):
        return [record.to_dict() for record in thing.history]
    return thing.to_dict() if hasattr(thing, "to_dict") else repr(thing)


def test_everything_public_is_pickled_or_holds_a_model(handed):
    names = [(fv, name) for name in fv.__all__] + [(testing, name) for name in testing.__all__]
    kinds = [getattr(room, name) for room, name in names]
    public = {kind for kind in [*kinds, video.Clip, Cost] if isinstance(kind, type)}
    never_made = {fv.Extension, fv.Family, testing.MethodContract, fv.VLM, fv.Prefix}
    assert public - {base for thing in handed for base in type(thing).__mro__} == never_made
    for thing in handed:
        again = pickle.loads(pickle.dumps(thing))
        if not isinstance(thing, fv.Cut | video.Clip | testing.TinyModel | fv.Question):
            assert told(again) == told(thing)


def test_a_trace_that_was_pickled_is_drawn_and_counts_as_before(handed, demo):
    for answer in handed[:4]:
        again = pickle.loads(pickle.dumps(answer))
        assert again.cost.to_dict() == answer.cost.to_dict()
        assert again.trace.show(demo).tobytes() == answer.trace.show(demo).tobytes()


def test_what_holds_a_model_says_what_is_pickled_instead(small, demo):
    stream = small.ask(demo, QUESTION, stream=True, max_new_tokens=1)
    for thing in (small, small.look(demo), stream):
        with pytest.raises(fv.SessionError, match="pickled"):
            pickle.dumps(thing)
    list(stream)
    assert isinstance(stream, Stream)
