"""`foveate-vllm check METHOD`: does vLLM on this machine drop the tokens that foveate drops on transformers?

The model that ships with foveate answers eleven questions at once in vLLM. transformers then computes them one by one
in float32: once with the same method and, as the control, once without.

Mean differences of log-probabilities, measured with CPU_ATTN under V2Drop, FastV and PyramidDrop:

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

from foveate.errors import FoveateError
from foveate.naming import parse

__all__ = ["Answer", "main", "verdict"]

NEW = 8
"""Tokens per answer."""
POISON = 1000.0
"""Value of all KV cache slots before the first request. Reading a slot that no row was written to then gives a large
error, where zeros would look like rounding."""
NEAR = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}
"""Largest mean difference of log-probabilities at which vLLM counts as correct, by dtype."""
SHARE = 1 / 3
"""Largest difference relative to the control's. Above, the method changes too little to be told from rounding."""
ENVIRONMENT = {
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
    """Run the command. Returns 0 if vLLM drops the same tokens, 1 if not, 2 if there is no such method."""
    parser = argparse.ArgumentParser(prog="foveate-vllm", description="Foveate inside vLLM.")
    check = parser.add_subparsers(required=True).add_parser(
        "check", help="compare vLLM on this machine with transformers"
    )
    check.add_argument("method", metavar="METHOD", help="the method of a server's setting, such as v2drop:tokens=64")
    check.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="dtype of vLLM's model"
    )
    check.add_argument("--attention-backend", metavar="NAME", help="such as FLASH_ATTN (default: vLLM's own choice)")
    check.add_argument("--out", type=Path, metavar="FILE", help="write the result with the versions as JSON")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        parse(options.method)
    except FoveateError as error:
        print(f"foveate-vllm: {error}", file=sys.stderr)
        return 2
    made, backends = _in_vllm(options)
    passed, said = verdict(options.dtype, *_beside_transformers(options.method, made))
    said = f"{options.method}, {options.dtype}, {backends}: {said}"
    print(said)
    if options.out:
        versions = {name: version(name) for name in ("foveate", "foveate-vllm", "transformers", "torch")}
        record = {"passed": passed, "said": said, "vllm": _vllm_version(), **versions}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(not passed)


def _asked() -> list[dict[str, Any]]:
    """Return the prompts: ten questions about one image each, and one about two."""
    from foveate.embedded import TASKS
    from foveate.eval.held_out import questions

    pool = questions(TASKS, 12, seeds=(5,))
    asked = [(f"USER: <image>\n{one.text} ASSISTANT:", [one.media()]) for one in pool]
    both = asked[10][0].replace("<image>", "<image><image>"), asked[10][1] + asked[11][1]
    return [{"prompt": text, "multi_modal_data": {"image": images}} for text, images in (*asked[:10], both)]


def _in_vllm(options: argparse.Namespace) -> tuple[list[Answer], str]:
    """Return all answers, asked at once with five sequences at a time, and the decoder's attention backend."""
    from vllm import LLM, SamplingParams

    import foveate.embedded

    setting = {"method": options.method, "untested": True}
    engine = LLM(
        str(foveate.embedded.path()),
        hf_overrides={"architectures": ["FoveateLlavaForConditionalGeneration"], "foveate": setting},
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
    for output in engine.generate(_asked(), sampling, use_tqdm=False):
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


def _beside_transformers(method: str, made: Sequence[Answer]) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Return vLLM's answers, and for their tokens transformers' answers with the method and without."""
    import torch

    import foveate as fv
    import foveate.embedded

    model, processor = foveate.embedded.load()
    model.generation_config.eos_token_id = None  # all answers have one length

    def forced(asked: dict[str, Any], tokens: list[int]) -> Answer:
        inputs = processor(images=asked["multi_modal_data"]["image"], text=asked["prompt"], return_tensors="pt")
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
    for drop in (method, None):
        with fv.drop(model, method) if drop else nullcontext():
            sides.append([forced(one, answer.tokens) for one, answer in zip(_asked(), made, strict=True)])
    return list(made), sides[0], sides[1]


def verdict(dtype: str, made: list[Answer], under: list[Answer], without: list[Answer]) -> tuple[bool, str]:
    """Return whether vLLM's answers are those with the method, and a sentence with the differences."""
    count = len(made)
    far, control = (_apart(made, side) for side in (under, without))
    same, other = (sum(a.tokens == b.tokens for a, b in zip(made, side, strict=True)) for side in (under, without))
    said = (
        f"log-probabilities differ by {far:.1e} on average (limit {NEAR[dtype]}, without dropping {control:.1e}), "
        f"{same} of {count} answers are the same (without dropping {other}): "
    )
    if not far <= NEAR[dtype]:  # or NaN
        return False, said + "NOT as on transformers; please report it"
    if far > SHARE * control:
        return False, said + "this says nothing, because the method changes too little. Drop more tokens"
    return True, said + "as on transformers"


def _apart(made: Sequence[Answer], side: Sequence[Answer]) -> float:
    """Return the mean difference of log-probabilities."""
    ours, theirs = ([value for answer in answers for value in answer.logprobs] for answers in (made, side))
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _vllm_version() -> str:
    from foveate_vllm.host import version_of_vllm

    return version_of_vllm()


if __name__ == "__main__":
    sys.exit(main())
