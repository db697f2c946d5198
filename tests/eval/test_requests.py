import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from foveate.ask import answers
from foveate.ask.vlm import VLM
from foveate.errors import UnsupportedError
from foveate.eval.lmms.requests import Request, RequestAnswerer
from foveate.eval.records import open_answers
from foveate.methods.v2drop import V2Drop
from tests.cli.conftest import save_tiny_llava

GREEDY = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "num_beams": 1}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = save_tiny_llava(tmp_path_factory.mktemp("tiny"))
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    return VLM(model, LlavaProcessor.from_pretrained(folder), str(folder))


def request_for(document, text, colour, **generation):
    from PIL import Image

    rng = torch.Generator().manual_seed(colour)
    pixels = torch.randint(0, 255, (90, 90, 3), generator=rng, dtype=torch.uint8).numpy()
    content = [{"type": "image", "url": Image.fromarray(pixels)}, {"type": "text", "text": text}]
    return Request("task", "test", document, lambda: [{"role": "user", "content": content}], {**GREEDY, **generation})


@pytest.fixture
def requests():
    texts = ["What is this ?", "this", "What What is is this ?", "?", "is this", "What is w3 w4 w5 w6", "this ?"]
    return [request_for(at, text, at % 3) for at, text in enumerate(texts)]


def test_a_batch_gives_the_answers_of_its_samples_in_the_order_asked(llava, requests):
    method = V2Drop.for_budget(llava.model, retention=0.4)
    alone, four = (RequestAnswerer(llava, method, batch_size=size) for size in (1, 4))
    assert alone(requests) == four(requests)
    assert len(set(alone(requests))) > 1
    for key, row in alone.records.items():
        assert row["tokens"] == four.records[key]["tokens"]
        assert row["retention"] == four.records[key]["retention"] == pytest.approx(0.4, abs=0.02)


def test_a_run_that_dies_loses_no_finished_batch(llava, requests, tmp_path, monkeypatch):
    asked = []
    real = answers.answers_to

    def dying(vlm, prompts, *arguments, **settings):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return real(vlm, prompts, *arguments, **settings)

    monkeypatch.setattr(answers, "answers_to", dying)
    with pytest.raises(KeyboardInterrupt), open_answers({"of": "llava"}, tmp_path) as store:
        RequestAnswerer(llava, None, batch_size=2, store=store)(requests)
    with (store.path / "part-00000.jsonl").open("ab") as file:
        file.write(b'{"method": "full", "quest')
    monkeypatch.setattr(answers, "answers_to", real)
    added = []
    with open_answers({"of": "llava"}, tmp_path) as fresh:
        assert len(fresh) == sum(asked) > 0
        whole = RequestAnswerer(llava, None, batch_size=2, store=fresh, advance=added.append)
        assert whole(requests) == RequestAnswerer(llava)(requests)
    assert sum(added) == len(requests)
    with open_answers({"of": "llava"}, tmp_path) as again:
        assert len(again) == len(requests)


def test_an_answer_ends_before_what_the_task_says(llava, requests):
    (whole,) = RequestAnswerer(llava)(requests[:1])
    stop = whole.split()[1]
    (cut,) = RequestAnswerer(llava)([request_for(0, "What is this ?", 0, until=[stop, "nowhere"])])
    assert cut == whole.split(stop)[0].strip()


def test_sampling_is_refused_with_the_way_out(llava):
    with pytest.raises(UnsupportedError, match=r"answers here are greedy.*--gen_kwargs temperature=0"):
        RequestAnswerer(llava)([request_for(0, "this", 0, temperature=0.7)])
