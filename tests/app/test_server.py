"""Where the page listens, and what is said where it cannot."""

import pytest

from foveate.app.server import hosts_of, listen, url_of
from foveate.errors import UnsupportedError


def test_port_0_is_a_free_one():
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as other:
        assert url_of(one) != url_of(other)
        assert url_of(one).startswith("http://127.0.0.1:")
    with listen("0.0.0.0", 0) as every:
        assert url_of(every).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("host", ["no such host", "203.0.113.7", "a" * 300, "\0"])
def test_an_address_that_is_not_here_is_refused(host):
    with pytest.raises(UnsupportedError, match="listen"):
        listen(host, 0)


def test_a_page_for_this_machine_alone_is_found_by_its_names_alone():
    assert hosts_of("0.0.0.0") == ["*"]
    assert "[::1]" in hosts_of("::1")
    assert "evil.example" not in hosts_of("127.0.0.1")
