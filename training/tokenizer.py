"""The tokenizer: byte-level BPE over the question templates, one token a character in read-outs.

    python training/tokenizer.py FILE      train one anew and write it

The one in use is `tokenizer.json` beside this file. Weights belong to their tokenizer, so it stays as
it is when the generator's questions change.
"""

import argparse
from functools import cache
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from foveate.embedded.drawing import COLOURS, SHAPES
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene

__all__ = ["ASSISTANT", "BOS", "EOS", "IMAGE", "PAD", "SIZE", "USER", "build", "train"]

PAD, BOS, EOS, IMAGE, USER, ASSISTANT = range(6)
SIZE = 448


@cache
def build() -> Tokenizer:
    """The tokenizer that the weights were trained with."""
    return Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))


def train(scenes: int = 3000) -> Tokenizer:
    """A new one; the same every time, as long as the generator is the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[0-9A-Z]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    roles = [AddedToken(role, lstrip=True, rstrip=True, special=True) for role in ("USER:", "ASSISTANT:")]
    specials = [AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<s>", "</s>", "<image>")]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=specials + roles,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(corpus(scenes)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def corpus(scenes: int) -> list[str]:
    """Questions and answers of some training scenes, and every name alone."""
    lines = [f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)]
    for index in range(scenes):
        for q in one_per_task(scene("train", index, 168), "train", index):
            lines += [f"\n{q.question}", q.answer]
    return lines


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(train().to_str() + "\n")


if __name__ == "__main__":
    main()
