"""Fine-tune a model on few vision tokens with TRL and LoRA. Ask it before and after, with all tokens and with few.

    pip install "trl==1.16.0" "peft>=0.21"
    python examples/train.py      # the embedded model learns a question: about four minutes of one CPU core
    python examples/train.py --model NAME_OR_FOLDER --data rows.jsonl --steps 500 --output adapter

A row is {"image": "cats/1.jpg", "question": "What is it?", "answer": "A cat."}; paths start at the folder of the file.
The last tenth of the pictures is not trained on: the model is asked about it. For several GPUs, write
`accelerate launch` in place of `python`.
"""

import argparse
import random
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import foveate as fv
from foveate import embedded
from foveate.embedded.scenes import scene
from foveate.runs.samples import Bad, as_said, labels_in, samples_in

try:
    import datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer
except ModuleNotFoundError as error:
    sys.exit(f'train.py: {error}. Run: pip install "trl==1.16.0" "peft>=0.21"')


class FewTokens(SFTTrainer):
    """Draws the share of vision tokens that stay for each step: here a third, in a fifth of the steps all."""

    method, budgets = "divprune", (1.0, 1 / 3, 1 / 3, 1 / 3, 1 / 3)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        retention = random.Random(self.state.global_step).choice(self.budgets)  # the same on every rank
        with fv.drop(self.model, self.method, retention=retention):
            return super().training_step(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures (paths or PIL images), a question about them, and the right answers. The first one is trained."""

    pictures: list[Any]
    question: str
    answers: tuple[str, ...]


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=embedded.NAME, help="a hub id or a folder")
    parser.add_argument("--data", type=Path, help="rows in JSON lines, CSV or Parquet (default: drawn pictures)")
    parser.add_argument("--output", type=Path, default=Path("adapter"), help="a new folder for the adapter")
    parser.add_argument("--method", default="divprune")
    parser.add_argument(
        "--retention", type=Fraction, default=Fraction(1, 3), help="share of the vision tokens: 1/3, 0.2"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step on each device")
    parser.add_argument("--rate", type=float, help="learning rate (default: 2e-4, for drawn pictures 2e-3)")
    parser.add_argument("--questions", type=int, default=60, help="how many are asked before and after")
    return parser.parse_args(words)


def drawn(split: str, count: int) -> list[Row]:
    """Draw pictures with a question that the embedded model was never asked, and that has one right answer."""
    rows: list[Row] = []
    number = 980_000_000
    while len(rows) < count:
        picture = scene(split, number)
        number += 1
        things = sorted(picture.things, key=lambda thing: thing.size)
        if len(things) > 1 and things[-1].size > 1.3 * things[-2].size:
            rows.append(Row([Image.fromarray(picture.image)], "Which one is the largest?", (things[-1].name,)))
    return rows


def read(path: Path) -> list[Row]:
    """Read the rows of a file, and exit at the first one that cannot be trained on."""
    rows = []
    for sample in samples_in(path).read():
        where = f"train.py: {path}, row {sample.number + 1}"
        if isinstance(sample, Bad):
            sys.exit(f"{where}: {sample.reason}")
        answers = labels_in(sample.record)
        if not answers:
            sys.exit(f'{where} has no answer. Write one: {{"image": "cats/1.jpg", "question": "…", "answer": "…"}}')
        try:
            for picture in sample.media:
                Image.open(picture).close()
        except (OSError, ValueError) as error:
            sys.exit(f"{where} has no picture that can be read: {error!s:.200}")
        rows.append(Row(list(sample.media), sample.question, answers))
    return rows


def parted(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Part rows into those to train on and those about the last tenth of the pictures."""
    pictures = list(dict.fromkeys(picture for row in rows for picture in row.pictures))
    last = set(pictures[-max(1, len(pictures) // 10) :])
    train = [row for row in rows if not last.intersection(row.pictures)]
    if not train:
        sys.exit("train.py: the data must have rows about two pictures or more: one tenth is not trained on.")
    return train, [row for row in rows if last.intersection(row.pictures)]


def for_trl(rows: list[Row]) -> datasets.Dataset:
    """The rows as prompts and completions, of which TRL trains the answers. It would train all of `messages`."""
    turns = [
        {
            "images": row.pictures,
            "prompt": [{"role": "user", "content": row.question}],
            "completion": [{"role": "assistant", "content": row.answers[0]}],
        }
        for row in rows
    ]
    return datasets.Dataset.from_list(turns).cast_column("images", datasets.List(datasets.Image()))


def begin_as_asked(vlm: fv.VLM, first: int) -> None:
    """Let the chat template write the token that the tokenizer puts before a prompt. TRL leaves it out."""
    tokenizer, turn = vlm.tokenizer, {"role": "user", "content": [{"type": "text", "text": "?"}]}
    text = vlm.processor.apply_chat_template([turn], add_generation_prompt=True)
    if first == tokenizer.bos_token_id and not text.startswith(tokenizer.bos_token):
        vlm.processor.chat_template = "{{ bos_token }}" + vlm.processor.chat_template


def share_right(vlm: fv.VLM, rows: list[Row], **drops: Any) -> float:
    """Return the share of the questions that the model answers rightly, but for case and a full stop."""
    answers = vlm.ask_many([(row.pictures, row.question) for row in rows], **drops)
    right = [as_said(answer.text) in map(as_said, row.answers) for row, answer in zip(rows, answers, strict=True)]
    return sum(right) / len(right)


def main(words: list[str] | None = None) -> None:
    """Train, and print what is right before and after."""
    options = options_of(words)
    if options.output.exists() and not (options.output.is_dir() and not any(options.output.iterdir())):
        sys.exit(f"train.py: {options.output} exists. Choose another folder with --output.")
    if options.data is None and options.model != embedded.NAME:
        sys.exit(f"train.py: {options.model} needs rows to train on: --data rows.jsonl. See --help.")
    on_gpu, drops = torch.cuda.is_available(), {"method": options.method, "retention": float(options.retention)}
    if options.data is None:
        train, test = drawn("train", options.steps * options.batch), drawn("held-out", options.questions)
    else:
        train, test = parted(read(options.data))
    vlm = fv.load(options.model, device="cpu", dtype="bfloat16" if on_gpu else "float32")  # TRL moves it
    prompt = vlm.prepare(train[0].pictures, train[0].question)
    vlm.method_for(options.method, prompt.vision_tokens, retention=drops["retention"])
    begin_as_asked(vlm, int(prompt.inputs["input_ids"][0, 0]))

    decoder = set(vlm.model.get_decoder().modules())  # the tower and the projector stay frozen
    linear = [name for name, at in vlm.model.named_modules() if at in decoder and isinstance(at, torch.nn.Linear)]
    trainer = FewTokens(
        model=vlm.model,
        processing_class=vlm.processor,
        train_dataset=for_trl(train),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=linear),
        args=SFTConfig(
            str(options.output),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=options.rate or (2e-4 if options.data else 2e-3),
            warmup_steps=min(5, options.steps),
            max_length=None,  # a prompt that is cut has fewer placeholders than vision tokens
            bf16=on_gpu,
            dataloader_pin_memory=on_gpu,
            logging_steps=max(1, options.steps // 6),
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.method, trainer.budgets = options.method, (1.0, *4 * [drops["retention"]])

    tuned, test = fv.VLM(trainer.model, vlm.processor, name=vlm.name), test[: options.questions]
    lines = [f"{'':16}{'all tokens':>12}{f'{options.method} {options.retention}':>18}"]
    for when in ("before", f"after {options.steps} steps"):
        if when != "before":
            trainer.train()
        trainer.model.eval()
        lines.append(f"{when:16}{share_right(tuned, test):12.1%}{share_right(tuned, test, **drops):18.1%}")
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"\nRight answers to {len(test)} questions about pictures that were not trained on", *lines, sep="\n")
        print(f"The adapter is in {options.output}: foveate.load({str(options.output)!r})")


if __name__ == "__main__":
    try:
        main()
    except fv.FoveateError as error:
        sys.exit(f"train.py: {error}")
