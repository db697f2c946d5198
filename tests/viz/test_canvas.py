"""Pictures in HTML."""

import base64
import io

import pytest
from PIL import Image

from foveate.viz.canvas import data_url


@pytest.mark.parametrize(("kind", "size"), [("webp", (30, 20)), ("png", (2, 2**14))])
def test_a_picture_is_in_its_url_as_webp_or_as_png_where_it_is_too_tall(kind, size):
    head, data = data_url(Image.new("RGB", size, "red")).split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (head, picture.format, picture.size) == (f"data:image/{kind};base64", kind.upper(), size)
