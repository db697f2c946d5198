"""One file, several doors: the same pixels and the same notes through each, or a refusal that names the form."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveate as fv
from foveate.ask.conversation import Conversation
from foveate.ask.media import decode_url, read_media, read_medium, read_picture
from foveate.errors import InputError, SettingError
from foveate.plain.files import is_video, local_path, scheme_of, state_of
from foveate.runs.samples import Bad, samples_in, samples_of
from foveate.video.wanted import FramesWanted
from tests.films import film

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")


def as_file(image, kind, **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


FILES = {
    "plain.png": as_file(RED, "PNG"),
    "moving.gif": as_file(RED, "GIF", save_all=True, append_images=[BLUE]),
}


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_an_animation_that_stands_at_another_frame_is_that_frame():
    image = Image.open(io.BytesIO(FILES["moving.gif"]))
    image.seek(1)
    shown = read_picture(image)
    assert (shown.image.getpixel((0, 0)), shown.note) == (
        (0, 0, 255),
        "the picture has 2 frames; only number 2 is read.",
    )


def written(data):
    """The same `data:` URL as clients write it."""
    text = base64.b64encode(data).decode()
    yield "data:image/png;base64," + base64.encodebytes(data).decode()
    yield "data:image/png;base64," + text + "\r\n"
    yield "  data:image/png;base64, " + text
    yield "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    yield "DATA:IMAGE/PNG;BASE64," + text
    yield "data:;charset=utf-8; base64 ," + text.rstrip("=")
    yield "data:image/png;base64," + text + "#top"
    yield "data:image/png," + "".join(f"%{byte:02x}" for byte in data)


@pytest.mark.parametrize("length", [150, 151, 152])
def test_data_urls_are_read_as_browsers_read_them(length):
    data = np.random.default_rng(length).bytes(length)
    assert {decode_url(text)[1] for text in written(data)} == {data}
    for text in written(FILES["plain.png"]):
        assert read_medium(text).image.tobytes() == RED.tobytes()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "holds nothing"),
        ("data:image/png;base64,QUJD*", "base64 is damaged"),
        ("data:image/png;base64,QUJDR", "base64 is damaged"),
        ("data:image/png;base64,QUI==JD", "base64 is damaged"),
        ("data:image/png;base64,QUJD_-", "base64 is damaged"),
    ],
)
def test_data_urls_that_are_none_are_refused_without_their_data(text, says):
    secret = "S" * 999
    with pytest.raises(InputError, match=f"The data: URL cannot be read: .*{says}") as refused:
        read_medium(text + (secret + "*" if "," in text and "nothing" not in says else ""))
    assert "SSS" not in str(refused.value)


def test_no_refusal_repeats_a_file(tmp_path):
    data = base64.b64encode(np.random.default_rng(0).bytes(3000)).decode()
    for source in (url(b"no picture" * 300), data, f"data:image/png;base64,*{data}"):
        with pytest.raises(InputError) as refused:
            read_medium(source)
        assert len(str(refused.value)) < 250


def test_an_open_file_is_read_from_its_beginning(tmp_path):
    buffer = io.BytesIO()
    RED.save(buffer, "PNG")  # it stands at its end now
    assert read_medium(buffer).image.tobytes() == RED.tobytes()
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    with path.open("rb") as file:
        assert read_medium(file).image.tobytes() == RED.tobytes()
    with path.open(encoding="latin-1") as text, pytest.raises(InputError, match="Open"):
        read_medium(text)


# -- films of frames ----------------------------------------------------------------------------------------------


def message_of(**part):
    return [{"role": "user", "content": [{"type": "video", **part}]}]


def test_a_film_may_be_the_list_of_its_frames_in_any_form_of_a_picture(tmp_path):
    (path := tmp_path / "a.png").write_bytes(FILES["plain.png"])
    forms = [path, str(path), path.as_uri(), FILES["plain.png"], url(FILES["plain.png"]), RED, np.asarray(RED)]
    films = [*read_media([forms]), *(read_medium(source, kind="video") for source in (forms, tuple(forms)))]
    films += [read_medium(np.stack([np.asarray(RED)] * len(forms)))]
    for key in ("video", "path", "url"):
        films += Conversation.of(message_of(**{key: forms})).clips
    for clip in films:
        assert (clip.frames == np.asarray(RED)).all()
        assert clip.seconds == (0, 0.5, 1, 1.5, 2, 2.5, 3)
        assert (clip.start, clip.end, clip.rate, clip.note) == (0, 3.5, 2, None)


@pytest.mark.parametrize("key", ["fps", "sample_fps"])
def test_a_list_of_frames_may_have_a_rate(key):
    (clip,) = Conversation.of(message_of(video=[RED, BLUE], **{key: 4})).clips
    assert clip.seconds == (0, 0.25)
    assert len(Conversation.of(message_of(video=[RED] * 9, nframes=3)).clips[0]) == 3


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"video": []}, 'must have one source|needs "video"|a film of one frame or more'),
        ({"video": [RED, RED.resize((4, 4))]}, "one size; got 4 x 4 and 40 x 30"),
        ({"video": [RED, "http://a/b.png"]}, "Nothing is downloaded"),
        ({"video": [RED, object()]}, "got a object"),
        ({"video": [RED], "video_start": 1}, "is read of a file"),
        ({"video": [RED], "fps": -1}, "fps"),
        ({"video": "film.mp4", "sample_fps": 1}, "sample_fps"),
        ({"type": "image", "image": [RED]}, "A list must be a film"),
    ],
)
def test_lists_that_are_no_film_are_refused(part, says):
    with pytest.raises((InputError, SettingError), match=says):
        Conversation.of(message_of(**part))


def test_frames_that_somebody_chose_all_go_in():
    vlm = fv.load(device="cpu")
    assert vlm.prepare([[RED] * 5], "What?").vision_tokens == 5 * 576
    part = {"type": "video", "video": [RED] * 7, "nframes": 4}
    asked = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    assert vlm.prepare(messages=asked).vision_tokens == 4 * 576


@pytest.mark.parametrize("ending", ["qt", "DIVX", "gifv", "mp4"])
def test_the_endings_of_films(ending):
    assert is_video(Path(f"a.{ending}"))


def test_a_film_is_the_same_as_a_file_a_url_and_bytes(tmp_path):
    path = film(tmp_path / "film.mp4", 12)
    data = path.read_bytes()
    expected = read_medium(path, FramesWanted(4))
    for source, kind in ((path.as_uri(), None), (url(data, "video/mp4"), None), (data, "video"), (url(data), "video")):
        clip = read_medium(source, FramesWanted(4), kind=kind)
        assert clip.seconds == expected.seconds
        assert (clip.frames == expected.frames).all()


def test_a_moving_gif_is_a_film_where_frames_are_asked_for_and_else_a_picture(tmp_path):
    (path := tmp_path / "moving.gif").write_bytes(FILES["moving.gif"])
    for source in (path, path.as_uri(), url(FILES["moving.gif"], "image/gif")):
        assert len(read_medium(source, FramesWanted(2))) == 2
        assert read_medium(source).image.tobytes() == RED.tobytes()


@pytest.mark.parametrize("address", ["file:///a%20b/c%23.png", "file:/a b/c#.png", "FILE://localhost/a%20b/c%23.png"])
def test_a_file_url_names_a_path(address):
    assert local_path(address) == Path("/a b/c#.png")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("file://server/share/a.png", "must name a file on this machine by its full path"),
        ("file://a.png", "must name a file on this machine by its full path"),
        ("file:a.png", "must name a file on this machine by its full path"),
        ("http://example.org/a.png", "Nothing is downloaded automatically"),
        ("HTTPS://example.org/a.png", "Nothing is downloaded automatically"),
        ("s3://bucket/a.png", "A s3: URL is not read"),
        ("GS://bucket/a.png", "A gs: URL is not read"),
        ("blob:http://localhost/1234", "A blob: URL is not read"),
        ("rtsp://camera/stream", "A rtsp: URL is not read"),
    ],
)
def test_other_addresses_are_refused_by_their_scheme_at_every_door(tmp_path, address, says):
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}
    for read in (read_medium, local_path, lambda source: Conversation.of([message])):
        with pytest.raises(InputError, match=says):
            read(address)
    (path := tmp_path / "rows.jsonl").write_text(f'{{"image": "{address}", "question": "x"}}\n')
    (row,) = samples_in(path).read()
    assert isinstance(row, Bad)
    assert says in row.reason


def test_names_with_a_colon_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RED.save("12:30.png")
    RED.save("scan: 1.png")
    assert [scheme_of(name) for name in ("12:30.png", "scan: 1.png", r"C:\a.png", "a/b:c.png")] == [None] * 4
    assert read_medium("scan: 1.png").image.size == RED.size


@pytest.mark.parametrize("name", ["http:a.png", "data:a.png", "file:a%20b.png", "s3:a.png"])
def test_a_path_object_is_no_url(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    RED.save(tmp_path / name)
    assert read_media([Path(name)])[0].image.size == RED.size
    assert state_of(Path(name))
    (row,) = samples_of([{"image": Path(name), "question": "What?"}]).read()
    assert row.media == (str(tmp_path / name),)


def test_an_empty_path_is_no_folder():
    with pytest.raises(InputError, match="empty"):
        read_media("")
