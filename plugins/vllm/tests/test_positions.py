"""M-RoPE positions of prompts whose images are cut, on bare tensors."""

import pytest
import torch
from hypothesis import given, strategies as st

from foveate_vllm.positions import (
    CHANNELS,
    Span,
    arrived,
    moved,
    next_position,
    places_of,
    restored,
    shortened,
    with_places,
)

IMAGE = 9


STEP = 2.5
"""Positions from one frame of a film to the next, before they are rounded down."""


def numbered(words: list[int | tuple[int, int] | tuple[int, int, int]]) -> torch.Tensor:
    """Positions by hand: a number is so much text, a pair an image's grid, three numbers frames and their grid."""
    columns: list[tuple[int, int, int]] = []
    start = 0
    for word in words:
        if isinstance(word, int):
            columns += [(start + place,) * 3 for place in range(word)]
            start += word
            continue
        frames, height, width = word if len(word) == 3 else (1, *word)
        times = [int(frame * STEP) for frame in range(frames)]
        columns += [
            (start + time, start + row, start + column)
            for time in times
            for row in range(height)
            for column in range(width)
        ]
        start += max(times[-1] + 1, height, width)
    return torch.tensor(columns).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_places_on_a_large_grid_survive_any_dtype(dtype):
    grid = (300, 700)
    source = torch.tensor([0, 699, 700, 256 * 700 + 257, 299 * 700 + 511])
    rows = torch.randn(5, 8, dtype=dtype)
    sent = with_places(rows, source, grid)
    assert sent.shape == (5, 8 + CHANNELS)
    assert sent.dtype == dtype
    assert torch.equal(sent[:, :8], rows)
    assert places_of(sent[:, 8:]).T.tolist() == [[0, 0, 0], [0, 0, 699], [0, 1, 0], [0, 256, 257], [0, 299, 511]]
    film = with_places(rows, source, (10, 70), STEP)
    assert places_of(film[:, 8:]).T.tolist() == [[0, 0, 0], [0, 9, 69], [2, 0, 0], [640, 3, 47], [747, 7, 21]]


def test_a_prompt_gets_its_images_whole_again():
    tokens = [1, 2, IMAGE, IMAGE, 3, IMAGE, 4]
    spans = [Span(2, 2, 4), Span(5, 1, 3)]
    assert restored(tokens, spans) == [1, 2, IMAGE, IMAGE, IMAGE, IMAGE, 3, IMAGE, IMAGE, IMAGE, 4]
    assert [moved(offset, spans) for offset in (0, 2, 4, 5, 6)] == [0, 2, 6, 7, 10]


def test_a_prompt_without_images_stays_as_it_is():
    positions = numbered([5])
    assert restored([1, 2, 3], []) == [1, 2, 3]
    assert torch.equal(shortened(positions, []), positions)


@given(
    grids=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    text=st.integers(1, 9),
    seed=st.integers(0, 999),
    chunk=st.integers(1, 12),
    again=st.booleans(),
)
def test_rows_have_the_positions_of_the_whole_prompt_however_they_arrive(grids, text, seed, chunk, again):
    rng = torch.Generator().manual_seed(seed)
    words: list[int | tuple[int, int] | tuple[int, int, int]] = [text]
    spans, is_image, left, channels = [], [False] * text, [True] * text, []
    for frames, height, width in grids:
        size = frames * height * width
        kept = int(torch.randint(1, size + 1, (1,), generator=rng))
        source = torch.randperm(size, generator=rng)[:kept].sort().values
        spans.append(Span(len(is_image), kept, size))
        stays = torch.zeros(size, dtype=torch.bool)
        stays[source] = True
        words += [(frames, height, width), text]
        left += [*stays.tolist(), *[True] * text]
        is_image += [True] * kept + [False] * text
        channels.append(with_places(torch.zeros(kept, 0), source, (height, width), STEP))
    whole = numbered(words)
    wanted = whole[:, torch.tensor(left)]
    images, sent = torch.tensor(is_image), torch.cat(channels)

    positions = shortened(whole, spans)
    assert positions.shape == wanted.shape
    assert torch.equal(positions[:, ~images], wanted[:, ~images])
    for _ in range(1 + again):
        for first in range(0, len(images), chunk):
            before, inside = images[:first].sum(), images[: first + chunk].sum()
            positions = arrived(positions, images, sent[before:inside], first)
            assert torch.equal(positions[:, : first + chunk], wanted[:, : first + chunk])
    assert next_position(positions) == next_position(whole)


def test_text_behind_a_portrait_goes_on_from_its_height():
    positions = shortened(numbered([2, (5, 2), 1]), [Span(2, 1, 10)])
    assert positions[:, -1].tolist() == [7, 7, 7]


def test_rows_of_a_second_image_do_not_overwrite_the_first():
    """vLLM's own helper does where the text before an image is longer than its rows."""
    spans = [Span(6, 2, 4), Span(14, 1, 4)]
    positions = shortened(numbered([6, (2, 2), 6, (2, 2), 1]), spans)
    images = torch.zeros(positions.shape[1], dtype=torch.bool)
    images[[6, 7, 14]] = True
    sent = torch.cat(
        (
            with_places(torch.zeros(2, 0), torch.tensor([1, 3]), (2, 2)),
            with_places(torch.zeros(1, 0), torch.tensor([2]), (2, 2)),
        )
    )
    rows = arrived(positions, images, sent, 0)
    assert rows[:, [6, 7, 14]].T.tolist() == [[6, 6, 7], [6, 7, 7], [14, 15, 14]]
