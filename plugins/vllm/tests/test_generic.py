"""Models of the generic way answer as foveate on transformers does, whatever stands between an image's rows."""

import numpy as np
import pytest

from foveate.errors import UnsupportedError
from foveate.naming import parse
from foveate_vllm import guards
from tests import checkpoints_generic
from tests.engines import Reference, answers, engine, picture, request

pytest.importorskip("vllm")

SIZES = ((84, 84), (60, 150), (160, 70), (168, 100))
VIDCOM2 = ("llava_onevision", "idefics3")
"""Where a picture has a tile's size two views of it are the same, and rounding decides what is farther apart."""
NO_TWO = ("llava_onevision",)
"""transformers shows base views alone where a prompt has two images; vLLM shows tiles, with foveate or without."""


def requests_for(name):
    """Text alone, one image in four shapes, and two images."""
    mark = checkpoints_generic.MARKS.get(name, "<image>")

    def ask(*shapes):
        images = [picture(seed, *SIZES[seed]) for seed in shapes]
        return request(images, "USER: " + mark * len(images) + " What does the text say? ASSISTANT:")

    asked = [ask(), ask(0), ask(1), ask(2), ask(3)]
    return asked if name in NO_TWO else [*asked, ask(1, 2)]


@pytest.mark.parametrize("name", checkpoints_generic.NAMES)
def test_a_model_of_the_generic_way_answers_as_on_transformers(name, tmp_path):
    if name == "smolvlm":
        pytest.importorskip("num2words")  # for its processor
    folder = checkpoints_generic.generic_checkpoint(name, tmp_path)
    reference, asked = Reference(folder), requests_for(name)
    method = "vidcom2" if name in VIDCOM2 else "divprune"
    with engine(folder, {"method": method, "retention": 0.4}) as llm:
        whole = asked[1] | {"mm_processor_kwargs": {"foveate_retention": 1.0}}
        said = answers(llm, [*asked, whole], ignore_eos=True)
    dropping = parse(method).with_budget(retention=0.4)
    assert said == [*(reference.answer(one, dropping) for one in asked), reference.answer(asked[1])]


def test_between_layers_a_model_of_the_generic_way_answers_as_on_transformers(tmp_path):
    folder = checkpoints_generic.generic_checkpoint("internvl", tmp_path)
    reference, asked = Reference(folder), requests_for("internvl")
    method = "v2drop:layers=1,3;keep=0.5,0.3"
    with engine(folder, {"method": method}) as llm:
        assert answers(llm, asked, ignore_eos=True) == [
            reference.answer(one, parse(method), new=False) for one in asked
        ]
        with pytest.raises(ValueError, match="Send frames as images"):
            answers(llm, [{"prompt": "<video>", "multi_modal_data": {"video": [np.zeros((4, 84, 84, 3), np.uint8)]}}])
        assert answers(llm, asked[:1], ignore_eos=True) == [reference.answer(asked[0])]


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("internvl", "visionzip", "reads the vision tower"),
        ("internvl", "divprune:keep=0.5+tome", "reads the vision tower"),
        ("mistral3", "cdpruner", "question"),
    ],
)
def test_what_reads_the_tower_is_refused_at_the_start(name, method, said, tmp_path):
    folder = checkpoints_generic.generic_checkpoint(name, tmp_path)
    with pytest.raises(Exception, match=said), engine(folder, {"method": method, "retention": 0.4}):
        pass


def test_an_architecture_without_images_and_one_with_m_rope_are_refused():
    with pytest.raises(UnsupportedError, match="takes audio and no images"):
        guards.refuse_no_images({"audio": 1})
    with pytest.raises(UnsupportedError, match=r"positions of three axes \(M-RoPE\)"):
        guards.refuse_mrope("FoveateKeyeForConditionalGeneration", True)
