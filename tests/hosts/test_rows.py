"""Rows in, kept rows out: arrays of any library in kind, what comes back, and what is refused in one line."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import foveate as fv
from foveate.contract import ImageStage, Stage, TowerAttention, TowerKeys
from foveate.core.signals import Cls
from foveate.errors import InputError, SettingError, ShapeError, UnknownNameError, UnsupportedError

WORDS = 3


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS, TEXT = drawn(36, 16), drawn(WORDS, 16, seed=1)
CHOOSING = ("divprune", "cdpruner", "vidcom2", "random:layers=0;seed=0")
"""Methods that make no rows of their own."""


def given(rows=ROWS, **more):
    return {"rows": rows, "method": "divprune", "grid": (6, 6), "text": TEXT, "retention": 0.25, **more}


@pytest.mark.parametrize("name", CHOOSING)
def test_source_parent_and_rows_belong_together(name):
    kept = fv.drop_rows(**given(method=name))
    assert len(kept) == 9
    assert torch.equal(kept.rows, ROWS[kept.source])
    assert kept.parent[kept.source].tolist() == list(range(9))
    assert (kept.parent < 0).sum() == 27


def test_a_merged_row_is_the_mean_of_the_tokens_that_went_into_it():
    kept = fv.drop_rows(**given(method="averagepool"))
    for row in range(len(kept)):
        torch.testing.assert_close(kept.rows[row], ROWS[kept.parent == row].mean(dim=0))


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda rows: rows[::-1, ::-1],
    "every second": lambda rows: np.repeat(rows, 2, axis=0)[::2],
    "big-endian": lambda rows: rows.astype(">f4"),
    "double": lambda rows: rows.astype(np.float64) + 1e-12,
    "half": lambda rows: rows.astype(np.float16),
    "fields": lambda rows: np.rec.fromarrays([rows, rows.astype("i1")], names="x,y").x,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["divprune", "averagepool"])
def test_numpy_comes_back_as_numpy_in_its_dtype_whatever_its_strides(layout, name):
    rows = layout(ROWS.numpy())
    rows.flags.writeable = False
    kept = fv.drop_rows(**given(rows, method=name, text=TEXT.numpy()))
    same = fv.drop_rows(**given(torch.from_numpy(np.array(rows, np.float32)), method=name))
    assert {type(part) for part in (kept.rows, kept.source, kept.parent)} == {np.ndarray}
    assert kept.rows.dtype == rows.dtype
    assert kept.source.tolist() == same.source.tolist()
    if name == "divprune":
        assert np.array_equal(kept.rows, rows[kept.source])  # bit for bit
    np.testing.assert_allclose(kept.rows.astype(np.float32), same.rows, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_are_of_float32_and_rows_of_the_dtype_that_came(dtype):
    kept, same = (fv.drop_rows(**given(ROWS.to(dtype).to(other))) for other in (dtype, torch.float32))
    assert kept.rows.dtype == dtype
    assert torch.equal(kept.source, same.source)
    assert torch.equal(kept.rows, ROWS.to(dtype)[kept.source])


def test_arrays_of_the_array_standard_come_back_in_kind_on_their_device():
    xp = pytest.importorskip("array_api_strict")
    for device in ("CPU_DEVICE", "device1"):
        rows, text = (xp.asarray(part.numpy(), device=xp.Device(device)) for part in (ROWS, TEXT))
        for name in ("divprune", "averagepool"):
            kept = fv.drop_rows(**given(rows, method=name, text=text))
            assert {part.device for part in (kept.rows, kept.source, kept.parent)} == {xp.Device(device)}
            assert np.allclose(np.from_dlpack(kept.rows), fv.drop_rows(**given(method=name)).rows)
    with pytest.raises(ShapeError, match="device"):
        fv.drop_rows(**given(rows, text=xp.asarray(TEXT.numpy())))


class Tower:
    """An array that only knows DLPack."""

    def __init__(self, rows):
        self.rows, self.dtype, self.shape = rows, rows.dtype, rows.shape

    def __dlpack__(self, **options):
        return self.rows.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.rows.__dlpack_device__()


def test_other_arrays_with_dlpack_come_back_as_torch():
    kept = fv.drop_rows(**given(Tower(ROWS)))
    assert torch.equal(kept.rows, fv.drop_rows(**given()).rows)


# -- several pictures, films, rows that stay -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CHOOSING, "uniform:layers=0"])
def test_a_list_is_one_prompt_and_a_number_is_of_each_picture(name):
    pictures = [ROWS, drawn(12, 16, seed=2)]
    shared = {"method": name, "grid": [(6, 6), (3, 4)], "text": [TEXT, TEXT]}
    assert [len(kept) for kept in fv.drop_rows(pictures, tokens=5, **shared)] == [5, 5]
    shares = fv.drop_rows(pictures, retention=0.25, **shared)
    assert sum(map(len, shares)) == 12
    for rows, kept in zip(pictures, shares, strict=True):
        assert torch.equal(kept.rows, rows[kept.source])
    (alone,) = fv.drop_rows(pictures[:1], retention=0.25, method=name, grid=[(6, 6)], text=[TEXT])
    assert torch.equal(alone.rows, fv.drop_rows(**given(method=name)).rows)


def test_a_film_and_a_picture_may_be_in_one_prompt():
    film, picture = fv.drop_rows([drawn(36, 16), ROWS], "dycoke", retention=0.5, grid=[(4, 3, 3), (6, 6)])
    assert (len(film), len(picture)) == (18, 36)  # DyCoke leaves pictures whole
    assert torch.equal(film.source, fv.drop_rows(drawn(36, 16), "dycoke", retention=0.5, grid=(4, 3, 3)).source)


@pytest.mark.parametrize("name", ["divprune", "averagepool", "vidcom2"])
def test_fixed_rows_stay_between_the_tokens_that_they_stood_between(name):
    """Two frames of 4 x 4 tokens with a CLS before each, and a newline behind all."""
    fixed = [0, 17, -1]
    rows = drawn(35, 16)
    free = [place for place in range(34) if place not in fixed]
    shared = {"method": name, "retention": 0.25, "grid": (2, 4, 4)}
    kept, bare = fv.drop_rows(rows, fixed=fixed, **shared), fv.drop_rows(rows[free], **shared)
    source = kept.source.tolist()
    assert len(kept) == len(bare) + 3
    assert torch.equal(kept.rows[kept.parent[[0, 17, 34]]], rows[[0, 17, 34]])
    assert (source[0], source[-1]) == (0, 34)
    assert all((token > 17) == (place > source.index(17)) for place, token in enumerate(source) if token != 17)
    others = [place for place, token in enumerate(source) if token not in (0, 17, 34)]
    assert torch.equal(kept.rows[others], bare.rows)
    assert [free.index(source[place]) for place in others] == bare.source.tolist()
    went = kept.parent[free]
    assert torch.equal(went < 0, bare.parent < 0)


def test_what_a_tower_shows_is_ranked_as_it_is_shown():
    attention = torch.rand(36, generator=torch.Generator().manual_seed(3))
    signals = {TowerAttention(by="cls"): attention, TowerKeys(): drawn(36, 4, seed=4), Cls(): drawn(1, 16, seed=5)}
    kept = fv.drop_rows(ROWS, "visionzip", tokens=8, signals=signals)
    dominant = attention.topk(6).indices.sort().values
    assert set(dominant.tolist()) <= set(kept.source.tolist())
    with pytest.raises(UnsupportedError, match="Cls"):
        fv.drop_rows(ROWS, "visionzip:positions=reindex", tokens=8, signals={TowerAttention(by="cls"): attention})


def test_a_row_carries_the_gradient_of_the_tokens_that_it_is_made_of():
    for name in ("divprune", "averagepool"):
        rows = ROWS.clone().requires_grad_()
        kept = fv.drop_rows(**given(rows, method=name))
        kept.rows.sum().backward()
        assert torch.equal(rows.grad.abs().sum(dim=1) > 0, kept.parent >= 0)


@pytest.mark.parametrize("name", [*CHOOSING, "averagepool"])
def test_a_share_of_all_keeps_every_row(name):
    kept = fv.drop_rows(**given(method=name, retention=1.0))
    assert torch.equal(kept.rows, ROWS)
    assert kept.source.tolist() == kept.parent.tolist() == list(range(36))


# -- cost ----------------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Notes operators outside stages, the elements that they copy of a picture's rows, and reads of the device."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names, self.copied, self.inside = [], 0, False

        def cut(stage, view, original=Stage.cut):
            self.inside = True
            try:
                return original(stage, view)
            finally:
                self.inside = False

        monkeypatch.setattr(Stage, "cut", cut)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not self.inside:
            self.names.append(str(function))
            is_rows = isinstance(result, torch.Tensor) and result.dim() == 2 and result.shape[1] == ROWS.shape[1]
            is_view = is_rows and result.untyped_storage().data_ptr() in {part.data_ptr() for part in (ROWS, TEXT)}
            self.copied += len(result) if is_rows and not is_view else 0
        return result


@pytest.mark.parametrize("name", [*CHOOSING, "averagepool", "dtd"])
def test_a_call_takes_few_operators_beside_the_picks_and_copies_a_row_once(name, monkeypatch):
    with Operators(monkeypatch) as seen:
        kept = fv.drop_rows(**given(method=name))
    assert len(seen.names) <= 22, seen.names
    assert seen.copied <= len(kept)


# -- bad input -----------------------------------------------------------------------------------------------------


def with_hole(value):
    rows = ROWS.clone()
    rows[3, 5] = value
    return rows


BAD = {
    "a grid that does not fit": ({"grid": (6, 5)}, ShapeError, "36"),
    "a grid of letters": ({"grid": "66"}, ShapeError, "grid"),
    "a grid without rows": ({"grid": (-6, -6)}, ShapeError, "grid"),
    "a grid with fixed rows": ({"fixed": [0]}, ShapeError, "35"),
    "NaN": ({"rows": with_hole(math.nan)}, InputError, "NaN"),
    "infinity in half precision": ({"rows": with_hole(math.inf).half()}, InputError, "NaN"),
    "NaN in NumPy": ({"rows": with_hole(math.nan).numpy(), "text": None}, InputError, "NaN"),
    "NaN in the text": ({"text": TEXT * math.nan}, InputError, "text"),
    "NaN in a signal": ({"signals": {TowerKeys(): with_hole(math.nan)}}, InputError, "TowerKeys"),
    "integers": ({"rows": ROWS.long()}, ShapeError, "int64"),
    "integers of NumPy": ({"rows": ROWS.long().numpy()}, ShapeError, "floats"),
    "complex numbers": ({"rows": ROWS.to(torch.complex64)}, ShapeError, "complex"),
    "objects": ({"rows": np.full((36, 16), None)}, ShapeError, "rows"),
    "no array": ({"rows": "rows"}, ShapeError, "rows"),
    "a batch": ({"rows": ROWS[None]}, ShapeError, "dimensions"),
    "an empty picture": ({"rows": ROWS[:0]}, ShapeError, "without rows"),
    "no width": ({"rows": ROWS[:, :0]}, ShapeError, "without rows"),
    "no pictures": ({"rows": [], "grid": None, "text": None}, ShapeError, "empty"),
    "a text of another width": ({"text": TEXT[:, :8]}, ShapeError, "width"),
    "pictures of two widths": ({"rows": [ROWS, ROWS[:, :8]], "grid": None, "text": None}, ShapeError, "width"),
    "two devices": ({"text": TEXT.to("meta")}, ShapeError, "device"),
    "no budget": ({"retention": 0.0}, SettingError, "retention"),
    "no tokens": ({"retention": None, "tokens": 0}, SettingError, "tokens"),
    "two budgets": ({"tokens": 4}, SettingError, "tokens"),
    "a budget of text": ({"retention": "a third"}, SettingError, "retention"),
    "grids of fewer pictures": ({"rows": [ROWS, ROWS], "grid": [(6, 6)], "text": None}, ShapeError, "each of 2"),
    "one grid for two": ({"rows": [ROWS] * 3, "text": None}, ShapeError, "grid"),
    "fixed rows outside": ({"fixed": [36]}, ShapeError, "fixed"),
    "a mask of fixed rows": ({"fixed": torch.zeros(36, dtype=torch.bool)}, ShapeError, "fixed"),
    "a mask of fixed rows in Python": ({"fixed": [True] * 36}, ShapeError, "fixed"),
    "all rows fixed": ({"fixed": range(36)}, ShapeError, "fixed"),
    "signals without names": ({"signals": [ROWS]}, InputError, "signals"),
    "short signals": ({"signals": {TowerKeys(): ROWS[:5]}}, ShapeError, "36"),
    "a family that is not": ({"family": "lava"}, UnknownNameError, "llava"),
    "a method that is not": ({"method": "devprune"}, UnknownNameError, "divprune"),
}


@pytest.mark.parametrize(("change", "error", "word"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line(change, error, word):
    with pytest.raises(error, match=word) as raised:
        fv.drop_rows(**given(**change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["v2drop", "visionzip", "hawk", "finalkv", "resize", "divprune+v2drop"])
def test_what_works_elsewhere_is_refused_with_what_can_run(name):
    with pytest.raises(UnsupportedError, match=r"averagepool, cdpruner, divprune.*random:layers=0"):
        fv.drop_rows(ROWS, name, text=TEXT)


@pytest.mark.parametrize("text", [None, TEXT[:0]])
def test_a_question_that_was_not_given_is_not_read(text):
    with pytest.raises(UnsupportedError, match=r"text.*can run: averagepool, divprune"):
        fv.drop_rows(ROWS, "cdpruner", text=text)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "Qwen2.5-VL", "qwen2.5-vl"])
def test_a_family_is_named_by_its_model_type_or_its_title(family):
    assert len(fv.drop_rows(**given(method="mmtok", family=family))) == 9
    with pytest.raises(UnsupportedError, match="Features"):
        fv.drop_rows(**given(method="mmtok", family="llava"))


class Own(fv.Method):
    """Keeps the tokens with the largest first number, each picture by itself."""

    name = "own"

    def stages(self, shape):
        return (ImageStage(side="behind", keep=0.5, score=lambda view: view.features[:, 0]),)


def test_a_method_of_ones_own_is_run_too():
    kept = fv.drop_rows(ROWS, Own())
    assert kept.source.tolist() == ROWS[:, 0].topk(18).indices.sort().values.tolist()
