"""Train on twelve questions about a picture that runs once: they stand in the batch behind its cache, with gradients.

    python examples/train_shared.py [METHOD]

Loss and gradients are those of twelve samples. Prints the losses and the seconds of a step both ways.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

import foveate as fv
from foveate import embedded
from foveate.ask.look import refuse_unshareable
from foveate.embedded.questions import all_questions
from foveate.embedded.scenes import rng_for, scene


def shared(model: Any, prefix: dict[str, Tensor], ids: Tensor, picture: Tensor) -> Tensor:
    """Return the logits behind each token of the questions, (questions, tokens, words).

    For models with one position for each token: LLaVA and its kin, InternVL, SmolVLM, Idefics 3, Mistral 3, Gemma 3
    and 4. With Qwen-VL and GLM, transformers fails. Not for methods that read the question.

    Args:
        prefix: What the model takes of each picture: pixels, and the ids up to its end with their attention mask.
        ids: (questions, tokens) int64, questions with their answers, padded on the right.
        picture: (questions,) int64, the picture of each question.

    Raises:
        UnsupportedError: If the picture sees the question, as PaliGemma's does.
    """
    refuse_unshareable(model, None)
    seen = model(**prefix, use_cache=True, logits_to_keep=1)
    name = "cache" if "cache" in seen else "past_key_values"  # before transformers 5.24
    seen[name].batch_select_indices(picture)  # with gradients: a picture's is the sum over its questions
    mask = pad(prefix["attention_mask"][picture], (0, ids.shape[1]), value=1)  # no answer looks at padding behind it
    return model(input_ids=ids, attention_mask=mask, use_cache=True, **{name: seen[name]}).logits


def separate(model: Any, prefix: dict[str, Tensor], ids: Tensor, picture: Tensor) -> Tensor:
    """Return the same logits from a sample for each question, in which its picture runs again."""
    samples = {name: values[picture] for name, values in prefix.items()}
    samples["input_ids"] = torch.cat((samples["input_ids"], ids), 1)
    samples["attention_mask"] = pad(samples["attention_mask"], (0, ids.shape[1]), value=1)
    return model(**samples, use_cache=False).logits[:, -ids.shape[1] :]


def step(logits_of: Callable[..., Tensor], model: Any, labels: Tensor, *batch: Any) -> tuple[float, float]:
    """Compute the gradients. Returns the loss and the seconds of a core. `labels` are -100 where no answer is."""
    start = time.process_time()
    loss = cross_entropy(logits_of(model, *batch)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    return loss.item(), time.process_time() - start


def main(method: str = "divprune") -> None:
    """Take a step in both ways, with all vision tokens and with a third."""
    model, processor = embedded.load()
    model.requires_grad_(True).model.vision_tower.requires_grad_(False)
    drawn = scene("train", 900_000_000)
    asked = [question for of_task in all_questions(drawn, rng_for("train", 0)).values() for question in of_task][:12]
    words = [processor.tokenizer(f"{each.question} ASSISTANT:", add_special_tokens=False).input_ids for each in asked]
    answers = [processor.tokenizer(f"{each.answer}</s>", add_special_tokens=False).input_ids for each in asked]
    pairs = list(zip(words, answers, strict=True))
    ids = pad_sequence([torch.tensor(text + answer) for text, answer in pairs], batch_first=True)
    rows = [torch.tensor([-100] * len(text) + answer) for text, answer in pairs]
    labels = pad_sequence(rows, batch_first=True, padding_value=-100)
    prefix = dict(processor(images=Image.fromarray(drawn.image), text="USER: <image>\n", return_tensors="pt"))
    batch = (model, labels, prefix, ids, torch.zeros(len(ids), dtype=torch.int64))
    for name, retention in (("all tokens", 1.0), (f"{method} at 1/3", 1 / 3)):
        with fv.drop(model, method, retention=retention):
            (loss, fast), (other, slow) = step(shared, *batch), step(separate, *batch)
        print(f"{name}, picture once: loss {loss:.5f}, {fast:.2f} s")
        print(f"{name}, {len(ids)} samples: loss {other:.5f}, {slow:.2f} s, {slow / fast:.1f} times as long")


if __name__ == "__main__":
    main(*sys.argv[1:])
