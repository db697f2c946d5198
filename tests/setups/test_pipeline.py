"""`pipeline("image-text-to-text")` around a model that drops."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import foveate as fv
from tests.cli.conftest import save_tiny_llava

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = save_tiny_llava(tmp_path_factory.mktemp("pipeline"), layers=6)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return pipeline("image-text-to-text", model=model, processor=AutoProcessor.from_pretrained(folder))


def chat(colour, question="What is this ?"):
    picture = Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    picture.paste(colour, (10, 10, 40, 40))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def answer(pipe, prompts, **settings):
    return pipe(
        text=prompts, max_new_tokens=4, return_full_text=False, generate_kwargs={"do_sample": False}, **settings
    )


@pytest.mark.parametrize("given", ["pipeline", "model"])
def test_a_pipeline_answers_as_its_model_does(pipe, given):
    prompt = chat("red")
    plain = answer(pipe, prompt)
    with fv.drop(pipe if given == "pipeline" else pipe.model, METHOD) as trace:
        dropped = answer(pipe, prompt)
        inputs = pipe.processor.apply_chat_template(
            prompt, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        ids = pipe.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    text = pipe.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert dropped[0]["generated_text"].strip() == text.strip()
    assert trace.history[0].vision_tokens == (36,)
    assert [stage.after for stage in trace.stages] == [(18,), (5,)]
    assert answer(pipe, prompt) == plain


def test_a_pipeline_of_a_model_without_a_family_is_refused(pipe):
    class Other:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(fv.UnsupportedError, match=r"model_type None \(Linear\)"), fv.drop(Other(), METHOD):
        pass
