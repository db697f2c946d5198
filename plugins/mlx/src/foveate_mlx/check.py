"""`foveate-mlx check MODEL`: does dropping work in this version of mlx-vlm, with this model?

The model answers a question about a picture that ships with foveate: whole, with all tokens kept, with a third, and
with a third in small chunks. A third is compared with the decoder run by hand, from the columns of the whole input that
are left, with explicit positions. If all is right, `drop` accepts the model on this version from then on.
"""

from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import mlx_vlm
import numpy as np
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.prompt_utils import apply_chat_template

from foveate import embedded
from foveate.core.patching import Patcher
from foveate.hosts import Checks
from foveate_mlx import Trace, host
from foveate_mlx.dropping import Dropper

NEW = 6
"""Tokens per answer."""

Answer = list[tuple[int, host.Array]]
"""Greedy tokens, each with the log-probabilities of all tokens that it was chosen from."""


def check(name: str) -> bool:
    """Compare the runs, print what was found, and remember a model that passed. Returns whether it did."""
    model, processor = mlx_vlm.load(name)
    prompt = apply_chat_template(processor, model.config, embedded.QUESTION, num_images=1)
    stock: list[Any] = []

    def note(embed: Any, ids: mx.array, *args: Any, **kwargs: Any) -> Any:
        stock[:] = np.array(ids)[0], embed(ids, *args, **kwargs)
        return stock[1]

    def answer(retention: float | None = None, **options: Any) -> tuple[Answer, Dropper]:
        dropper, image = Dropper(model, "divprune", None, retention or 1.0, Trace()), str(embedded.picture())
        with host.attached(dropper) if retention else nullcontext():
            results = mlx_vlm.stream_generate(
                model, processor, prompt, image, max_tokens=NEW, temperature=0.0, **options
            )
            steps = [(one.token, np.array(one.logprobs.astype(mx.float32)).ravel()) for one in results]
        return steps[:-1], dropper  # the last result repeats the last token

    with Patcher() as patches:
        patches.wrap(model, "get_input_embeddings", note)
        whole, _ = answer()
    third, dropper = answer(1 / 3)
    moved = _distance(third, whole)
    dtype = str(stock[1].inputs_embeds.dtype).removeprefix("mlx.core.")
    most = min(Checks.NEAR[dtype], Checks.SHARE * moved)
    distances = {
        "all tokens kept, and stock mlx-vlm": (_distance(answer(1.0)[0], whole), 0.0),
        "a third kept, and the decoder by hand": (_distance(third, _by_hand(dropper, stock[0], stock[1], third)), most),
        "a third kept, at once and in chunks": (_distance(third, answer(1 / 3, prefill_step_size=8)[0]), most),
    }
    for what, (distance, limit) in distances.items():
        print(f"{what}: {distance:.2g} apart in log-probability, at most {limit:.2g}")
    passed = all(distance <= limit for distance, limit in distances.values())
    print(f"{name}: {'passed' if passed else 'NOT passed'}. A third is {moved:.2g} from the whole.")
    if passed:
        host.CHECKS.note(host.conditions(model.config))
    return passed


def _by_hand(dropper: Dropper, ids: host.Array, features: Any, answer: Answer) -> Answer:
    """Run the decoder on the columns that a run has left, with the tokens of its answer."""
    vision = dropper.is_vision(ids)
    stays, images = ~vision, np.split(np.flatnonzero(vision), np.cumsum(dropper.trace.tokens)[:-1])
    for image, source in zip(images, dropper.trace.sources, strict=True):
        stays[image[source]] = True
    whole = host.shortened(features, vision[None], np.flatnonzero(stays)[None])
    fields = {name: value for name, value in vars(whole).items() if value is not None}
    delta = fields.pop("rope_deltas", None)
    inputs, cache, steps = mx.array(ids[stays][None]), make_prompt_cache(dropper.decoder), []
    for step, (token, _) in enumerate(answer):
        logits = dropper.decoder(inputs, cache=cache, **fields).logits[0, -1].astype(mx.float32)
        steps.append((token, np.array(logits - mx.logsumexp(logits))))
        inputs, fields = mx.array([[token]]), {}
        if delta is not None:  # the token's position is that behind the whole prompt
            fields["position_ids"] = mx.full((3, 1, 1), len(ids) + step + int(features.rope_deltas.sum()))
    return steps


def _distance(answer: Answer, other: Answer) -> float:
    """Return the mean difference of the log-probabilities of all tokens."""
    return float(np.mean([np.abs(own - theirs).mean() for (_, own), (_, theirs) in zip(answer, other, strict=False)]))
