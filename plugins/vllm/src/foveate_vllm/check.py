"""`foveate-vllm check MODEL`: does vLLM on this machine drop the tokens that foveate drops on transformers?

The model, or the one that ships with foveate, answers eleven questions at once in vLLM. transformers then computes them
one by one in float32: once with the same method and, as the control, once without. In a version of vLLM that foveate's
tests do not run, servers drop only after this has passed for their model and method.

Mean differences of log-probabilities of the small model, measured with CPU_ATTN under V2Drop, FastV and PyramidDrop:

    correct: float32, float16, bfloat16                    0.000001, 0.001 to 0.010, 0.008 to 0.096
    wrong rows kept at all cuts, or at the first           0.43 to 1.7
    lengths of the last cut used behind all cuts           0.52 to 1.3
    a length too large by one, or of an earlier cut        11 to 20
    one key lost; wrong rows at a late cut                 0.02 to 0.09; 0.003 to 0.12

So each limit differs by a factor of at least two from either side. Errors of the last line are smaller than the
rounding of half precision and only found in float32: late layers of this model hardly attend to its image.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from foveate.embedded import NAME, TASKS, path
from foveate.errors import FoveateError
from foveate.hosts import Checks
from foveate.naming import parse
from foveate.plain.writing import publish
from foveate_vllm.host import CHECKING, note_passed, version_of_vllm

__all__ = ["Answer", "main", "verdict"]

NEW = 8
"""Tokens per answer."""
POISON = 1000.0
"""Value of all KV cache slots before the first request. Reading a slot that no row was written to then gives a large
error, where zeros would look like rounding."""
USUAL = "v2drop"
ENVIRONMENT = {
    CHECKING: "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Answer(NamedTuple):
    """Greedy tokens and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 if vLLM drops the same tokens, 1 if not, 2 if no such model or method can run."""
    parser = argparse.ArgumentParser(prog="foveate-vllm", description="Foveate inside vLLM.")
    check = parser.add_subparsers(required=True).add_parser(
        "check", help="compare vLLM on this machine with transformers"
    )
    check.add_argument("model", metavar="MODEL", help="a model, or a method on the model that ships with foveate")
    check.add_argument("--method", help=f"as in a server's setting, such as v2drop:tokens=64 (default: {USUAL})")
    check.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="dtype of vLLM's model"
    )
    check.add_argument("--attention-backend", metavar="NAME", help="such as FLASH_ATTN (default: vLLM's own choice)")
    check.add_argument("--out", type=Path, metavar="FILE", help="write the result with the versions as JSON")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if options.method is None and not (options.model == NAME or "/" in options.model or os.path.isdir(options.model)):
        options.model, options.method = NAME, options.model
    options.method = options.method or USUAL
    try:
        parse(options.method)
        asked = _asked(options.model)
        inside, backends = _in_vllm(options, asked)
        passed, said = verdict(options.dtype, *_beside_transformers(options, asked, inside))
        said = f"{options.model}, {options.method}, {options.dtype}, {backends}: {said}"
        if passed:
            note_passed(_place(options.model), options.method)
        print(said)
        if options.out:
            versions = {name: version(name) for name in ("foveate", "foveate-vllm", "transformers", "torch")}
            record = {"passed": passed, "said": said, "vllm": version_of_vllm(), **versions}
            text = json.dumps(record, indent=1) + "\n"
            print(f"Written to {publish(options.out, lambda part: part.write_text(text), force=False)}.")
    except FoveateError as error:
        print(f"foveate-vllm: {error}", file=sys.stderr)
        return 2
    return int(not passed)


def _place(model: str) -> str:
    """Return the name or folder from which vLLM loads a model."""
    return str(path()) if model == NAME else model


def _asked(model: str) -> list[dict[str, Any]]:
    """Return the prompts: ten questions about one image each, and one about two.

    Raises:
        FoveateError: If there is no such model.
    """
    from foveate.ask.loading import load
    from foveate.eval.held_out import questions

    processor = load(model, weights=False).processor
    pool = questions(TASKS, 12, seeds=(5,))
    several = [*([one] for one in pool[:10]), pool[10:]]
    asked = []
    for rows in several:
        images = [row.media() for row in rows]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": rows[0].text}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        asked.append({"prompt": text, "multi_modal_data": {"image": images}})
    return asked


def _in_vllm(options: argparse.Namespace, asked: Sequence[dict[str, Any]]) -> tuple[list[Answer], str]:
    """Return all answers, asked at once with five sequences at a time, and the decoder's attention backend."""
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    place = _place(options.model)
    (stock,) = AutoConfig.from_pretrained(place).architectures
    setting = {"method": options.method, "untested": True}
    engine = LLM(
        place,
        hf_overrides={"architectures": [f"Foveate{stock}"], "foveate": setting},
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=5,
        gpu_memory_utilization=0.3,
        limit_mm_per_prompt={"image": 2},
        **({"attention_backend": options.attention_backend} if options.attention_backend else {}),
    )
    (backend,) = engine.apply_model(_poisoned)
    sampling = SamplingParams(temperature=0, max_tokens=NEW, logprobs=1, ignore_eos=True)
    answers = []
    for output in engine.generate(asked, sampling, use_tqdm=False):
        (one,) = output.outputs
        pairs = zip(one.logprobs, one.token_ids, strict=True)
        answers.append(Answer(list(one.token_ids), [row[token].logprob for row, token in pairs]))
    engine.llm_engine.engine_core.shutdown()
    return answers, backend


def _poisoned(model: Any) -> str:
    """Fill the KV cache of a worker's model with `POISON`, and return its attention backend."""
    layers = [layer.self_attn.attn for layer in model.get_language_model().model.layers]
    for attention in layers:
        attention.kv_cache.fill_(POISON)
    return str(layers[0].attn_backend.get_name())


def _beside_transformers(
    options: argparse.Namespace, questions: Sequence[dict[str, Any]], made: Sequence[Answer]
) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Return vLLM's answers, and for their tokens transformers' answers with the method and without."""
    import torch

    import foveate as fv

    vlm = fv.load(options.model, dtype="float32")
    model, processor = vlm.model, vlm.processor
    model.generation_config.eos_token_id = None  # all answers have one length

    def forced(asked: dict[str, Any], tokens: list[int]) -> Answer:
        images = asked["multi_modal_data"]["image"]
        inputs = processor(images=images, text=asked["prompt"], return_tensors="pt").to(model.device)
        start = inputs["input_ids"].shape[1]
        out = model.generate(
            **inputs,
            max_new_tokens=NEW,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda _, ids: [tokens[ids.shape[-1] - start]],
            return_dict_in_generate=True,
            output_logits=True,
        )
        rows = [torch.log_softmax(row[0].float(), -1) for row in out.logits]
        best = [int(row.argmax()) for row in rows]
        return Answer(best, [float(row[token]) for row, token in zip(rows, tokens, strict=True)])

    sides = []
    for drop in (options.method, None):
        with fv.drop(model, drop) if drop else nullcontext():
            sides.append([forced(one, answer.tokens) for one, answer in zip(questions, made, strict=True)])
    return list(made), sides[0], sides[1]


def verdict(dtype: str, made: list[Answer], under: list[Answer], without: list[Answer]) -> tuple[bool, str]:
    """Return whether vLLM's answers are those with the method, and a sentence with the differences."""
    count = len(made)
    far, control = (_apart(made, side) for side in (under, without))
    same, other = (sum(a.tokens == b.tokens for a, b in zip(made, side, strict=True)) for side in (under, without))
    said = (
        f"log-probabilities differ by {far:.1e} on average (limit {Checks.NEAR[dtype]}, without dropping "
        f"{control:.1e}), "
        f"{same} of {count} answers are the same (without dropping {other}): "
    )
    if not far <= Checks.NEAR[dtype]:  # or NaN
        return False, said + "NOT as on transformers; please report it"
    if far > Checks.SHARE * control:
        return False, said + "this says nothing, because the method changes too little. Drop more tokens"
    return True, said + "as on transformers"


def _apart(made: Sequence[Answer], side: Sequence[Answer]) -> float:
    """Return the mean difference of log-probabilities."""
    ours, theirs = ([value for answer in answers for value in answer.logprobs] for answers in (made, side))
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


if __name__ == "__main__":
    sys.exit(main())
