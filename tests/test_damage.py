"""Damaged pictures, films, settings, records and command lines: each ends in an answer or in an error of ours."""

import dataclasses
import io
import json
import warnings
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import foveate as fv
from foveate import registry
from foveate.ask.media import read_picture
from foveate.eval.records import open_answers
from foveate.naming import parse
from foveate.video import read
from tests.cli.conftest import ask, run, tiny_llava  # noqa: F401 - fixtures
from tests.damage import NUMBERS, TEXTS, VALUES, altered, damaged
from tests.films import film
from tests.runs.test_samples import samples_of
from tests.tuning.presets import preset_of

IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMATS = {
    "PNG": "RGBA", "JPEG": "CMYK", "GIF": "P", "WEBP": "RGB", "TIFF": "LAB", "BMP": "1", "PPM": "I;16",
}  # fmt: skip
TUNED = preset_of(fv.MustDrop(global_thr=0.002, individual_thr=0.004)).to_dict()
ROWS = [{"method": name, "question": "1/colour", "answer": "grün, \n", "spent": 64.5} for name in ("full", "v2drop a")]
SAMPLES = [{"id": str(at), "image": f"{at}.png", "question": "What is this?"} for at in range(4)]


def lines_of(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def saved(kind):
    Image.effect_mandelbrot((33, 20), (-2, -1.5, 1, 1.5), 40).convert("RGB").convert(
        {"LAB": "L", "I;16": "I", "P": "P"}.get(FORMATS[kind], FORMATS[kind])
    ).save(file := io.BytesIO(), kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_picture(kind, tmp_path):
    @given(damaged(saved(kind)))
    def check(data):
        (path := tmp_path / "picture").write_bytes(data)
        with suppress(fv.FoveateError):
            read_picture(path)

    check()


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
def test_a_damaged_film(ending, codec, tmp_path):
    film(path := tmp_path / f"film.{ending}", 12, size=(32, 24), codec=codec, gop=4, options={"fflags": "+bitexact"})

    @given(damaged(path.read_bytes()), st.sampled_from(({}, {"frames": 4}, {"fps": 3.0})))
    def check(data, options):
        path.write_bytes(data)
        with suppress(fv.FoveateError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a note that a part is missing
            clip = read(path, **options)
            assert len(clip.frames) == len(clip.seconds) > 0

    check()


@settings(max_examples=150)
@given(st.data(), st.sampled_from(sorted(registry.methods())))
def test_odd_settings_make_a_method_that_survives_its_json_and_plans_no_more_than_there_is(data, name):
    kind = registry.methods()[name]
    usual = {field.name: field.default for field in dataclasses.fields(kind)}
    values = data.draw(st.dictionaries(st.sampled_from(sorted(usual)), VALUES, max_size=3)) if usual else {}
    written = ";".join(f"{key}={value}" for key, value in values.items())
    make = data.draw(
        st.sampled_from((lambda: kind(**values), lambda: parse(f"{name}:{written}"), lambda: parse(name + written)))
    )
    with suppress(fv.FoveateError):
        method = make()
        assert registry.from_dict(json.loads(json.dumps(method.to_dict()))).to_dict() == method.to_dict()
        plan = method.plan(32, (25, 36))
        assert plan is None or all(0 <= count <= 61 for count in plan)


@IN_ONE_FOLDER
@given(altered(TUNED).map(json.dumps))
def test_a_damaged_record_is_refused_or_survives_its_json(tmp_path, text):
    (path := tmp_path / "record.json").write_text(text)
    with suppress(fv.FoveateError):
        record = fv.Tuned.load(path)
        assert fv.Tuned.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record


@IN_ONE_FOLDER
@given(st.data())
def test_a_damaged_store_gives_a_row_as_it_was_written_or_not_at_all(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    with open_answers({}, folder) as answers:
        answers.add(ROWS)
    (path,) = folder.glob("*/part-*.jsonl")
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with suppress(fv.FoveateError), open_answers({}, folder) as answers:
        rows = [answers.get(row["method"], row["question"]) for row in ROWS]
        assert all(row in (None, wanted) for row, wanted in zip(rows, ROWS, strict=True))
        assert len(answers) == len(rows) - rows.count(None)


@IN_ONE_FOLDER
@given(st.tuples(*map(altered, SAMPLES)).map(lines_of) | damaged(lines_of(SAMPLES)))
def test_damaged_rows(tmp_path, data):
    (path := tmp_path / "rows.jsonl").write_bytes(data)
    with suppress(fv.FoveateError):
        samples_of(path)


FLAGS = ("--retention", "--tokens", "--seed", "--temperature", "--max-new-tokens", "--method", "--device", "--figure")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(FLAGS), (NUMBERS | TEXTS).map(ascii)), min_size=1, max_size=2))
def test_an_odd_command_line_ends_in_one_clear_line(ask, monkeypatch, tmp_path, flags):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, out, err = ask("generate", *(word for flag in flags for word in flag))
    assert code in (0, 1, 2)
    assert "Traceback" not in out + err
    assert code == 0 or err.strip()
