"""One model: alike prompts in batches, one look at a picture, halves where memory is short, bad rows by themselves."""

import copy
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.ask import answers, look
from foveate.batch.rows import Predictor, PredictorSettings, RowAsking
from foveate.naming import parse
from foveate.runs.crew import rows_of
from foveate.runs.samples import MediaSample
from tests.films import film


def rows_about(pictures, count, same=1):
    """Rows whose questions differ; `same` of them in a row are about one picture."""
    words = ["What", "is", "this", "w1", "w2", "w3"]
    return [
        sample(number, (str(pictures / f"{number // same % 10}.png"),), " ".join(words[: number % 5 + 1]))
        for number in range(count)
    ]


def sample(number, media, question="What is this"):
    record = {"id": f"r{number}", "image": list(media), "question": question, "label": "tabby"}
    return MediaSample(number, f"r{number}", media, question, record, "image")


def by_number(results):
    return sorted(results, key=lambda row: row["row"])


def told(results):
    """What is the same however rows are put together."""
    return [[row[name] for name in ("row", "id", "answer", "retention", "label")] for row in by_number(results)]


class Calls:
    """Counts the batches that go to the model, and lets those fail that are too large.

    Attributes:
        sizes: Questions of each batch that was answered.
        shared: Which of them looked once for all.
        tried: Questions of every batch, those that failed too.
    """

    def __init__(self, monkeypatch, fails=lambda prompts: None):
        self.sizes, self.shared, self.tried = [], [], []
        apart = answers.answers_to

        def answers_to(vlm, prompts, *arguments, look=None, **options):
            self._note(fails, prompts, shared=look is not None)
            return apart(vlm, prompts, *arguments, look=look, **options)

        monkeypatch.setattr(answers, "answers_to", answers_to)

    def _note(self, fails, prompts, *, shared):
        self.tried.append(len(prompts))
        if error := fails(prompts):
            raise error
        self.sizes.append(len(prompts))
        self.shared.append(shared)


def test_answers_are_those_of_a_question_alone(asking, vlm, pictures):
    rows = rows_about(pictures, 10)
    results = rows_of(Predictor(replace(asking, batch_size=4), vlm=vlm), rows)
    for row, result in zip(rows, by_number(results), strict=True):
        alone = vlm.ask(row.media[0], row.question, method="v2drop:layers=1,2,3;keep=0.5,0.3,0", max_new_tokens=4)
        assert (result["id"], result["answer"], result["retention"]) == (row.id, alone.text, round(alone.retention, 6))
        assert (result["vision_tokens"], result["tokens"]) == (36, alone.spent)
        assert result["new_tokens"] == len(alone.tokens)
    assert {result["retention"] for result in results} == {round(15 / 36, 6)}


def test_choices_have_the_values_of_a_question_alone(asking, vlm, pictures):
    rows, candidates = rows_about(pictures, 6, same=2), ("yes", "no dog")
    results = rows_of(Predictor(replace(asking, batch_size=4, choices=candidates), vlm=vlm), rows)
    for row, result in zip(rows, by_number(results), strict=True):
        alone = vlm.ask(row.media[0], row.question, choices=candidates, method="v2drop:layers=1,2,3;keep=0.5,0.3,0")
        assert result["answer"] == alone.text
        assert result["choices"] == pytest.approx(dict(alone.choices), abs=1e-4)
    with pytest.raises(fv.SettingError):
        Predictor(replace(asking, choices=("yes", "yes")), vlm=vlm)
    assert RowAsking(model="m", choices=candidates).to_dict()["choices"] == list(candidates)


def test_a_system_text_is_in_front_of_every_row_and_runs_once(asking, vlm, pictures, monkeypatch):
    system, texts, prefill = "w1 w2 is w3 this ?", [], look.prefill
    monkeypatch.setattr(look, "prefill", lambda *given: texts.append("pixel_values" in given[1]) or prefill(*given))
    rows = rows_about(pictures, 10, same=2)
    results = rows_of(Predictor(replace(asking, batch_size=2, system=system), vlm=vlm), rows)
    assert texts.count(False) == 1
    for row, result in zip(rows, by_number(results), strict=True):
        content = [{"type": "image", "image": row.media[0]}, {"type": "text", "text": row.question}]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        alone = vlm.ask(messages=messages, method=asking.method, max_new_tokens=4)
        assert (result["answer"], result["retention"]) == (alone.text, round(alone.retention, 6))
    assert RowAsking(model="m", system=system).to_dict()["system"] == system
    monkeypatch.setattr(
        vlm.processor, "chat_template", "{% for m in messages if m.role == 'user' %}<image>{% endfor %}"
    )
    with pytest.raises(fv.UnsupportedError):
        Predictor(replace(asking, system=system), vlm=vlm)


def test_a_picture_with_several_questions_is_looked_at_once(asking, vlm, pictures, monkeypatch):
    calls = Calls(monkeypatch)
    towers = []
    hook = vlm.model.model.vision_tower.register_forward_hook(lambda *_: towers.append(1))
    rows = rows_about(pictures, 8, same=4)
    shared = rows_of(Predictor(replace(asking, batch_size=4), vlm=vlm), rows)
    hook.remove()
    assert (calls.sizes, calls.shared, len(towers)) == ([4, 4], [True, True], 2)
    assert told(shared) == told(rows_of(Predictor(replace(asking, batch_size=1), vlm=vlm), rows))


def test_a_method_that_reads_the_question_is_asked_one_by_one(asking, vlm, pictures, monkeypatch):
    calls = Calls(monkeypatch)
    asking = replace(asking, batch_size=4, method=parse("fastv:layers=2"))
    results = rows_of(Predictor(asking, vlm=vlm), rows_about(pictures, 4, same=4))
    assert (calls.sizes, calls.shared) == ([4], [False])
    assert len(results) == 4


def test_a_batch_without_room_is_halved_and_all_is_answered(asking, vlm, pictures, monkeypatch):
    rows = rows_about(pictures, 10)
    expected = told(rows_of(Predictor(asking, vlm=vlm), rows))
    errors = iter([torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), *[torch.OutOfMemoryError()] * 99])
    calls = Calls(monkeypatch, lambda prompts: next(errors) if len(prompts) > 2 else None)
    assert told(rows_of(Predictor(replace(asking, batch_size=8), vlm=vlm), rows)) == expected
    assert calls.tried[:3] == [8, 4, 2]
    assert max(calls.sizes) == 2
    assert calls.tried.count(8) == 1  # what does not fit is not tried again at once


def test_a_file_that_has_no_room_beside_others_waits_for_them(asking, vlm, pictures, monkeypatch):
    prepared = Predictor._prepare

    def reads(self, sample, shelf):
        if len(shelf) == 3:
            raise MemoryError
        return prepared(self, sample, shelf)

    monkeypatch.setattr(Predictor, "_prepare", reads)
    results = rows_of(Predictor(asking, vlm=vlm), rows_about(pictures, 6))
    assert [(result["row"], "reason" in result) for result in by_number(results)] == [(row, False) for row in range(6)]


def test_larger_batches_come_back_after_a_while(asking, vlm, pictures, monkeypatch):
    monkeypatch.setattr(answers, "CALM", 2)
    short = [True]
    calls = Calls(monkeypatch, lambda prompts: MemoryError() if len(prompts) > 2 and short.pop() else None)
    answerer = Predictor(replace(asking, batch_size=4), vlm=vlm)
    short.append(False)
    short.reverse()
    assert len(rows_of(answerer, rows_about(pictures, 8))) == 8
    short.extend([False] * 9)
    assert len(rows_of(answerer, rows_about(pictures, 8))) == 8
    assert calls.sizes[-1] == 4


def test_a_row_that_does_not_fit_alone_is_bad_and_the_others_are_not(asking, vlm, pictures, monkeypatch):
    rows = rows_about(pictures, 9)
    large = rows[5].question

    def fails(prompts):
        return (
            MemoryError()
            if any(prompt.text == large and prompt.media[0].path.name == "5.png" for prompt in prompts)
            else None
        )

    Calls(monkeypatch, fails)
    results = by_number(rows_of(Predictor(replace(asking, batch_size=8), vlm=vlm), rows))
    assert [result["row"] for result in results if ("reason" in result)] == [5]
    assert "more memory than there is" in results[5]["reason"]
    assert (results[5]["id"], results[5]["question"]) == ("r5", large)


def test_whatever_is_raised_for_one_row_costs_that_row(asking, vlm, pictures, monkeypatch):
    def fails(prompts):
        bad = any(prompt.media[0].path.name == "2.png" for prompt in prompts)
        return ZeroDivisionError("by zero") if bad else None

    Calls(monkeypatch, fails)
    results = by_number(rows_of(Predictor(replace(asking, batch_size=4), vlm=vlm), rows_about(pictures, 5)))
    assert [("reason" in result) for result in results] == [False, False, True, False, False]
    assert results[2]["reason"] == "ZeroDivisionError: by zero."


def test_a_device_that_fails_ends_the_run_and_makes_no_row_bad(asking, vlm, pictures, monkeypatch):
    Calls(monkeypatch, lambda prompts: RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(fv.UnsupportedError, match="device failed"):
        rows_of(Predictor(asking, vlm=vlm), rows_about(pictures, 2))


def test_a_run_that_is_stopped_has_the_results_of_what_was_in_hand(asking, vlm, pictures):
    looks = iter([False] * 5 + [True] * 9)
    results = rows_of(Predictor(asking, vlm=vlm), rows_about(pictures, 4), lambda: next(looks))
    assert len(results) == 2
    assert rows_of(Predictor(asking, vlm=vlm), rows_about(pictures, 4), lambda: True) == []


def test_a_method_that_the_model_cannot_serve_is_refused_before_the_first_row(asking, vlm):
    with pytest.raises(fv.SettingError, match="layer"):
        Predictor(replace(asking, method=parse("v2drop:layers=3,17,22;keep=0.5,0.3,0")), vlm=vlm)


def test_a_budget_that_no_picture_here_can_meet_costs_rows_and_not_the_run(asking, vlm, pictures):
    asking = replace(asking, method=parse("v2drop:tokens=5000"))
    (result,) = rows_of(Predictor(asking, vlm=vlm), rows_about(pictures, 1))
    assert "reason" in result
    assert "5000" in result["reason"]


# Files


def test_files_outside_a_folder_are_not_read(asking, vlm, pictures, tmp_path):
    (inside := tmp_path / "grün 猫.png").write_bytes((pictures / "0.png").read_bytes())
    (link := tmp_path / "link.png").symlink_to(pictures / "0.png")
    paths = [pictures / "0.png", tmp_path / ".." / "0.png", link, inside]
    rows = [sample(number, (str(path),)) for number, path in enumerate(paths)]
    results = by_number(rows_of(Predictor(replace(asking, within=str(tmp_path)), vlm=vlm), rows))
    assert ["lies outside of" in result["reason"] for result in results[:3]] == [True] * 3
    assert "answer" in results[3]


def test_questions_about_none_two_and_moving_pictures(asking, vlm, pictures, tmp_path):
    film(tmp_path / "film.mp4", 6, size=(96, 96))
    two = (str(pictures / "0.png"), str(pictures / "1.png"))
    media = [(), two, (str(tmp_path / "film.mp4"),)]
    rows = [sample(number, paths) for number, paths in enumerate(media)]
    results = by_number(rows_of(Predictor(replace(asking, frames=2), vlm=vlm), rows))
    assert [result["vision_tokens"] for result in results] == [0, 72, 72]
    assert "nothing to drop" in results[0]["notes"][0]
    assert results[1]["notes"] == []
    assert "this model reads no videos" in results[2]["notes"][0]


# -- columns -------------------------------------------------------------------------------------------------------


def test_a_stage_gives_a_column_what_alone_asks_give(asking, vlm, pictures):
    stage = Predictor(asking, vlm=vlm, prompt="What is this")
    names = [str(pictures / f"{number}.png") for number in range(3)]
    picture = Image.open(names[2]).convert("RGB")
    inside = {"bytes": (pictures / "1.png").read_bytes(), "path": None}
    told = stage(
        {"image": [names[0], inside, picture, np.asarray(picture), "nofile.png", None], "label": list("abcdef")}
    )
    alone = [vlm.ask(name, "What is this", method=asking.method, max_new_tokens=4) for name in names]
    assert told["answer"] == [*(answer.text for answer in alone), alone[2].text, None, None]
    assert told["vision_tokens"][:3] == [36] * 3
    assert told["label"] == list("abcdef")
    assert told["error"][:4] == [None] * 4
    assert "nofile.png" in told["error"][4]
    assert "nothing under" in told["error"][5]


def test_a_stage_takes_the_arrays_of_engines_and_their_missing_values(asking, vlm, pictures):
    stage = Predictor(asking, vlm=vlm, prompt="What is this")
    names = np.array([str(pictures / "0.png"), str(pictures / "1.png")], dtype=object)
    assert stage({"image": names})["answer"] == stage({"image": names.tolist()})["answer"]
    arrays = np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names])
    assert stage({"image": arrays})["answer"] == stage({"image": names})["answer"]
    both = np.empty(1, dtype=object)
    both[0] = names
    assert stage({"images": both})["vision_tokens"] == [72]
    assert stage({"image": np.array([names[0], float("nan")], dtype=object)})["answer"][1] is None
    assert stage({"image": []}) == {"image": [], "answer": [], "error": [], "retention": [], "vision_tokens": []}


def test_a_stage_has_choices_and_does_not_lose_columns(asking, vlm, pictures):
    stage = Predictor(asking.model, vlm=vlm, method="divprune", retention=0.5, choices=("yes", "no"), batch_size=1)
    own = {"answer": ["a column of theirs"], "input_answer": ["of a job before"], "input_error": ["theirs"]}
    told = stage({"image": [pictures / "0.png"], "question": ["Is it?"], **own})
    assert told["answer"] == [max(told["choices"][0], key=told["choices"][0].get)]
    assert told["input_input_answer"] == ["a column of theirs"]
    assert told["input_answer"] == ["of a job before"]
    assert told["input_error"] == ["theirs"]


class Scaled(Predictor):
    """A user's own stage, with a setting of its own."""

    scale = 1


def test_a_copy_of_a_stage_is_the_same_stage_with_the_model_loaded_again(asking, pictures, monkeypatch):
    folder = Path(asking.model)
    monkeypatch.chdir(folder.parent)
    stage = Scaled(replace(asking, model=folder.name), prompt="What is this", share=0.5)
    stage.scale = 2
    columns = {"image": [str(pictures / "0.png")]}
    answers = stage(columns)["answer"]
    sent = pickle.dumps(stage)
    monkeypatch.chdir(pictures)  # another process may run elsewhere
    copied = pickle.loads(sent)
    assert copied(columns)["answer"] == answers
    assert (type(copied), copied.scale, copied._answerer.share) == (Scaled, 2, 0.5)
    assert len(sent) < 2000
    assert replace(copied.asking, model=asking.model) == asking
    hook = stage.vlm.model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(fv.SessionError, match="changed"):
        copy.deepcopy(stage)
    hook.remove()
    copied.vlm.model.lm_head.weight.data.add_(1)
    with pytest.raises(fv.SessionError, match="changed"):
        pickle.dumps(copied)


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stage_with_a_given_model_is_not_sent(asking, vlm, send):
    with pytest.raises(fv.SessionError, match="name its folder"):
        send(Predictor(asking, vlm=vlm))


def test_settings_that_are_not_those_of_the_given_model_are_refused(asking, vlm):
    assert Predictor(vlm=vlm, prompt="What?", dtype="float32", device="cpu").asking.model == vlm.name
    for other in ({"model": "embedded"}, {"dtype": "bfloat16"}, {"attention": "eager"}, {"cuda_graphs": True}):
        with pytest.raises(fv.SettingError, match=next(iter(other))):
            Predictor(**other, vlm=vlm)
    with pytest.raises(fv.SettingError, match="model"):
        Predictor(replace(asking, model="embedded"), vlm=vlm)
    with pytest.raises(fv.SettingError, match="vlm"):
        Predictor(vlm=vlm.model)


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"share": 5}, {"share": float("nan")}, {"prompt": ""}, {"prompt": " "}, {"prompt": 5}]
)
def test_a_stage_refuses_a_share_or_a_prompt_that_is_none(vlm, wrong):
    with pytest.raises(fv.SettingError, match=next(iter(wrong))):
        Predictor(vlm=vlm, **wrong)


def test_the_keywords_of_a_stage_are_those_that_are_read():
    names = {field.name for field in fields(RowAsking)} | {"tokens", "retention", "sure"}
    assert get_type_hints(PredictorSettings).keys() == names - {"model"}


def test_a_stage_refuses_what_it_does_not_read(asking, vlm):
    with pytest.raises(fv.InputError, match="metod"):
        Predictor(asking.model, vlm=vlm, metod="v2drop")
    with pytest.raises(fv.InputError, match="method"):
        Predictor(asking, vlm=vlm, method="v2drop")


def test_a_row_of_a_stage_that_lacks_something_is_told_what_this_door_reads(asking, vlm, pictures):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [str(pictures / "0.png"), pandas.NA], "label": [pandas.NA, "w1"]})
    lacks_question, lacks_picture = Predictor(asking, vlm=vlm)(frame)["error"]
    assert "prompt" in lacks_question
    assert Predictor(asking, vlm=vlm, prompt="What?")(frame)["error"][0] is None
    assert "--" not in lacks_question + lacks_picture


def test_an_unknown_setting_of_a_predictor_names_the_one_that_was_meant():
    with pytest.raises(fv.InputError, match="retention"):
        Predictor("embedded", retension=0.3)
