"""What the independent recompute must be told to follow a method: rules where it merges, kept sets where it drops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import foveate as fv
from foveate.contract.method import Method
from tests import oracle
from tests.invariants import facts
from tests.models import IMAGE, TINY, VIDEO, always_kept, cuts_of, generate, given, is_vision

BANNED = [IMAGE, VIDEO, 93, 94]


def check_recomputed(model, family, method, inputs, new_tokens=3, *, atol=1e-4, rtol=1e-4, **told):
    """Greedy tokens, logits and who was left are those of the plain recompute; `told` is for it, beside `reference`.

    Returns:
        The trace, and the logits of the tokens.
    """
    with fv.drop(model, method) as trace:
        out = generate(model, inputs, new_tokens)
    told = reference(method, family, model, inputs, trace) | told
    logits, kept = oracle.recomputed(model, inputs, out, banned=BANNED, **told)
    torch.testing.assert_close(torch.cat(out.logits), logits, atol=atol, rtol=rtol)
    assert kept == {stage.layer: stage.origin[0].tolist() for stage in trace.stages if stage.where == "layer"}
    return trace, logits


def reference(method: Method, family: str, model: Any, inputs: dict[str, Any], trace: fv.Trace) -> dict[str, Any]:
    """Arguments for `oracle.forward` beside the inputs."""
    depth = len(model.get_decoder().layers)
    reindex = facts.renumbers(method, depth) and not TINY[family].mrope
    told: dict[str, Any] = {"reindex": reindex, "tower": tower(method, family, model, inputs, trace)}
    dropper: Any = getattr(method, "members", (method,))[0]  # beside which FinalKV stands
    if dropper.name == "visiondrop":
        told["cuts"] = {
            layer: vision_rule(dropper, pair, model, inputs)
            for layer, pair in zip(dropper.layer_list, dropper.image_token_list, strict=True)
        }
    elif dropper.name == "sparsevlm" and any(stage.assign[0] is not None for stage in trace.stages):
        told["cuts"] = mean_rules(model, inputs, trace)
    else:
        told["cuts"] = {stage.layer: stage.kept[0] for stage in trace.stages if stage.where == "layer"}
    if dropper.name == "vscan":
        told["cuts"][0] = joining_rule(model, inputs, trace.stages[0].kept[0])
    layers = facts.kv_layers(method, depth)
    if layers and any(stage.where == "kv" for stage in trace.stages):
        told["final_from"] = layers[0]
    return told


def tower(
    method: Method, family: str, model: Any, inputs: dict[str, Any], trace: fv.Trace
) -> Callable[[Tensor], Any] | None:
    """The rows each picture left the tower with, as the engine has them (golden vectors check their values)."""
    first = trace.stages[0] if trace.stages else None
    if first is None or first.where not in ("pixels", "tower", "projector"):
        return None
    features, cuts = [], []
    for modality in ("image", "video"):  # in these prompts images come first
        if of := given(model, inputs, modality):
            with fv.drop(model, method), torch.no_grad():
                output = getattr(model.model, f"get_{modality}_features")(**of)
            if fv.families()[family].tiled:  # tiles, which only a prompt makes images of
                output = with_prompt(model, method, inputs)
            there = is_vision(inputs["input_ids"][0])
            features += oracle.by_picture(model, oracle.features_of(model.model, output, of, modality), there)
            cuts += cuts_of(output)
    before, after = (trace.vision_tokens[0],) * 2 if first.rows else (first.before[0], first.after[0])
    assert sum(map(len, features)) == before
    rows = []
    for cut, one in zip(cuts, features, strict=True):
        stays = torch.zeros(len(one), dtype=torch.bool)
        stays[list(always_kept(family, len(one)))] = True
        kept = torch.arange(int((~stays).sum())) if cut is None else cut.source
        rows.append((kept, one[~stays][: len(kept)], one[stays]))
    assert sum(len(left) + len(fixed) for left, _, fixed in rows) == after
    return lambda _: rows


def with_prompt(model: Any, method: Method, inputs: dict[str, Any]) -> Any:
    """What the model's own call of `get_image_features` answers."""
    with fv.drop(model, method), torch.no_grad():
        encode, answers = model.model.get_image_features, []
        model.model.get_image_features = lambda *args, **kwargs: answers.append(encode(*args, **kwargs)) or answers[0]
        try:
            model(**inputs)
        finally:
            model.model.get_image_features = encode
    return answers[0]


def mean_rules(model: Any, inputs: dict[str, Any], trace: fv.Trace) -> dict[int, Callable[..., Any]]:
    """For each cut a rule by which rows become the means of those that the trace says have joined."""
    with torch.no_grad():
        _, picture, _ = oracle.embed(model, inputs)
    owner = picture[picture >= 0]  # the picture of each vision token
    rules: dict[int, Callable[..., Any]] = {}
    before = went_before = torch.arange(len(owner))
    for stage in trace.stages:
        origin, went = stage.origin[0], stage.assign[0]
        step = torch.full_like(before, -1)
        step[went_before[went_before >= 0]] = went[went_before >= 0]
        rules[stage.layer] = MeanRule(owner[before], owner[origin], before, origin, step)
        before, went_before = origin, went
    return rules


class MeanRule:
    """One cut, picture by picture: the rows that arrive and those that are left, and which went into which.

    Args:
        arrive: The picture of each row that arrives.
        left: The picture of each row that is left.
        before: The tokens that arriving rows stand for.
        origin: The tokens that the rows that are left stand for.
        step: The row that each arriving one went into; −1: none.
    """

    def __init__(self, arrive: Tensor, left: Tensor, before: Tensor, origin: Tensor, step: Tensor) -> None:
        self.arrive, self.left, self.before, self.origin, self.step = arrive, left, before, origin, step
        self.calls = 0

    def __call__(self, layer: Any, hidden: Tensor, own: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        index = self.calls % (int(self.arrive.max()) + 1)
        self.calls += 1
        here, new = ((pictures == index).nonzero()[:, 0] for pictures in (self.arrive, self.left))
        assert len(here) == len(own)
        states = [hidden[own[self.step[here] == row]].mean(dim=0) for row in new]
        stand = [int((self.before[here] == self.origin[row]).nonzero()[0, 0]) for row in new]
        return torch.tensor(stand), torch.stack(states)


def vision_rule(method: Any, pair: tuple[int, int], model: Any, inputs: dict[str, Any]) -> Callable[..., Any]:
    """VisionDrop's cut, with counts for the picture at hand: its share of what the setting says."""
    with torch.no_grad():
        _, picture, _ = oracle.embed(model, inputs)
    sizes = torch.bincount(picture[picture >= 0]).tolist()
    todo: list[int] = []

    def counts(_: int) -> tuple[int, int]:
        if not todo:
            todo.extend(sizes)
        size = todo.pop(0)
        scaled = [int(count * size / method.reference + 0.5) for count in pair]
        return max(1, scaled[0]), scaled[1]

    return oracle.vision_decides(counts, method.merge, method.bidirectional, method.queries)


def joining_rule(model: Any, inputs: dict[str, Any], kept: Tensor) -> Callable[..., Any]:
    """VScan's merging before layer 0, one token at a time: those that are not kept join the kept one most like them.

    Newlines neither join nor are joined.
    """
    vision = is_vision(inputs["input_ids"][0]).nonzero()[:, 0]
    stay = set(vision[kept].tolist())
    newline = getattr(model.model, "image_newline", None)

    def join(layer: Any, x: Tensor, mine: Tensor, rotary: Any, entered: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
        of_image = [row for row in range(len(mine)) if int(columns[mine[row]]) in stay]
        rows = x[mine]
        plain = [newline is None or not torch.equal(row, newline.to(row)) for row in rows]
        targets = [row for row in of_image if plain[row]]
        unit = rows / rows.norm(dim=-1, keepdim=True)
        members = {row: [row] for row in of_image}
        for row in range(len(mine)):
            if row not in members and plain[row]:
                near = [float(unit[row] @ unit[target]) for target in targets]
                members[targets[near.index(max(near))]].append(row)
        return torch.tensor(of_image), torch.stack([rows[joined].mean(dim=0) for joined in members.values()])

    columns = torch.arange(inputs["input_ids"].shape[1])  # nothing has left before layer 0
    return join
