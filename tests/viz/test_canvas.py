"""Pictures in HTML."""

import base64
import io

from PIL import Image

from foveate.viz.canvas import data_url


def read(url):
    head, data = url.split(",")
    return head, Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_picture_is_in_its_url():
    head, picture = read(data_url(Image.new("RGB", (30, 20), "red")))
    assert (head, picture.format, picture.size) == ("data:image/webp;base64", "WEBP", (30, 20))


def test_a_sheet_that_is_too_tall_for_webp_is_a_png():
    head, picture = read(data_url(Image.new("RGB", (2, 2**14), "red")))
    assert (head, picture.format, picture.size) == ("data:image/png;base64", "PNG", (2, 2**14))
