"""Sets picked one token after the other, where a score alone does not say which tokens go together.

All are tensor code for one sample and run under `torch.func.vmap`: one Python loop over picks, no value read; of one
sample on CUDA the loop is one graph. Of equal tokens the lowest index is picked, no token is picked twice, and the
picks come back ascending. `pick_by_crop` lets one of them pick from a base view, tiles and frames, each its share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foveate.core.graphs import graphed
from foveate.core.grid import Grid, crops_of
from foveate.core.merge import of_length_one
from foveate.core.rank import shared_out
from foveate.core.tensors import BLOCK_NUMBERS, alike, blocks, send
from foveate.core.views import Arriving
from foveate.errors import ShapeError

NO_VARIANCE = 1e-6  # the share of the largest variance up to which only rounding is left of a token
TINIEST = torch.finfo(torch.float32).tiny  # the smallest sum of weights that divides
ROUNDS = 16  # of a redistribution; each round ends it or fills a group
HAIR = 1e-5  # what rounding may take off a group's share, in tokens
GRID = 2.0**40  # exact cosines are multiples of 1 / GRID, 4,096 times what float64 rounds by


def cosines(rows: Tensor, exact: bool = False, others: Tensor | None = None) -> Tensor:
    """The cosine of every two rows: (rows, width) of any dtype -> (rows, rows) float32, symmetric; float64 if exact.

    Args:
        rows: The rows.
        others: Rows to compare them with instead, (others, width): the answer is (rows, others) then.
        exact: Compute in float64, and round to multiples of 2⁻⁴⁰. What a batched product gives is then what a plain one
            gives, and a row's cosine with itself is 1: so that kernels do not decide between tokens that tie. Rounded
            to float32, cosines that differ would tie. float32 on Apple's GPUs, which have no float64.
    """
    is_double = exact and rows.device.type != "mps"
    dtype = torch.float64 if is_double else torch.float32
    unit = of_length_one(rows, dtype=dtype)
    if others is None:
        product = unit @ unit.T
        # A kernel may round the cosine of two rows differently from that of the same two the other way round.
        product = (product + product.T).mul_(0.5)  # in place: each copy is one more matrix of all pairs
    else:
        product = unit @ of_length_one(others, dtype=dtype).T
    if is_double:
        return snap(product)
    return product


def snap(values: Tensor) -> Tensor:
    """float64 numbers of about 1 as multiples of 2⁻⁴⁰, in place: what kernels round differently ties then."""
    return values.mul_(GRID).round_().div_(GRID)


def unlike_others(rows: Tensor) -> Tensor:
    """1 − (sum of the cosines of each row with the others) / rows: (rows, width) -> (rows,), multiples of 2⁻⁴⁰."""
    unit = of_length_one(rows, dtype=torch.float32 if rows.device.type == "mps" else torch.float64)
    others = unit @ unit.sum(dim=0) - unit.square().sum(dim=1)  # the sum over all first: no matrix of all pairs
    return 1 - snap(others / len(rows))


class Pairs:
    """A matrix of all pairs of tokens that is never whole: indexed by ordinals, (some,) int64, it makes these rows.

    Args:
        rows: (tokens, width) of any dtype.
        make: Called with cosines, (some, tokens) float32, and the ordinals of their rows; answers what stands there.
    """

    def __init__(self, rows: Tensor, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._unit = of_length_one(rows)
        self._make = make
        self.device = rows.device

    def __len__(self) -> int:
        return len(self._unit)

    def __getitem__(self, tokens: Tensor) -> Tensor:
        return self._make(self._unit[tokens] @ self._unit.T, tokens)

    def diagonal(self) -> Tensor:
        """What stands at each token and itself: (tokens,)."""
        places = torch.arange(len(self), device=self.device)
        return torch.cat([self[part].gather(1, part[:, None])[:, 0] for part in blocks(places, len(self))])


def pairs(rows: Tensor, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor | Pairs:
    """`Pairs`, or the matrix itself where that is no larger than a block, (tokens, tokens)."""
    if len(rows) ** 2 > BLOCK_NUMBERS:
        return Pairs(rows, make)
    return make(cosines(rows), torch.arange(len(rows), device=rows.device))


def cosine_flops(arriving: Arriving, width: int) -> int:
    """FLOPs of the cosines of all arriving tokens; of a tower's features as if they had the decoder's width."""
    return 2 * arriving.tokens**2 * width


@graphed
def max_min(distance: Tensor | Pairs, count: int) -> Tensor:
    """The subset whose smallest distance between two tokens is large, by greedy picks.

    The first pick is the token farthest from its nearest other token; each next one is farthest from its nearest
    picked one.

    Args:
        distance: (tokens, tokens), or `Pairs`: column j says how far token j is from each; tokens can have weights.
        count: How many to pick.

    Returns:
        (count,) int64, ascending.
    """
    _check(distance, count)
    places = torch.arange(len(distance), device=distance.device)
    nearest = torch.full(places.shape, float("inf"), device=distance.device)
    scores = nearest  # distance to the nearest other token
    for part in blocks(places, len(places)):
        to_others = distance[part].masked_fill(part[:, None] == places, float("inf"))
        scores = torch.minimum(scores, to_others.amin(dim=0))
    picks = []
    # Whoever is picked is at −inf from itself, so it is never the farthest again: said once of a matrix, so that a pick
    # takes three operators, and of every row where there is none.
    apart: Tensor | Pairs = distance
    if isinstance(distance, Tensor):
        apart = distance.masked_fill(places[:, None] == places, float("-inf"))
    nearest, scores = nearest[None], scores[None]
    for _ in range(count):
        pick = scores.argmax(dim=1)  # (1,): an index with a dimension, for which no value is read
        picks.append(pick)
        row = apart[pick]
        if isinstance(apart, Pairs):
            row = row.index_fill(1, pick, float("-inf"))
        nearest = scores = torch.fmin(nearest, row)
    return _ascending(picks, places)


@graphed
def cover(similarity: Tensor, count: int, saliency: Tensor | None = None) -> Tensor:
    """The subset that covers all targets best, by greedy picks (facility location).

    A target is covered as well as by its most similar picked candidate, and by none at 0. A candidate gains

        Σ_u max(0, similarity_ju − covered_u)  [· saliency_j]

    Each pick computes all gains anew, O(candidates · targets), from the running maximum `covered`. Taking off only what
    the last pick has covered would round differently and so decide ties otherwise; refreshing only the gains that may
    still win (they never grow) reads values in each pick, which neither `vmap` nor a GPU that runs ahead allows.

    Args:
        similarity: (candidates, targets). Each candidate is one row, also where candidates and targets are the same.
        count: How many to pick.
        saliency: (candidates,), what each gain is multiplied by, 0 or more.

    Returns:
        (count,) int64, ascending.
    """
    _check(similarity, count)
    covered = torch.zeros_like(similarity.sum(dim=0))
    taken = torch.zeros_like(similarity.sum(dim=1), dtype=torch.bool)
    picks = []
    for _ in range(count):
        # A block of rows at a time: a second matrix takes longer than the rest.
        gains = torch.cat([(rows - covered).relu_().sum(dim=1) for rows in blocks(similarity, len(covered))])
        if saliency is not None:
            gains = gains * saliency
        pick = gains.masked_fill(taken, float("-inf")).argmax(dim=0, keepdim=True)
        picks.append(pick)
        covered = torch.maximum(covered, similarity[pick][0])
        taken = taken.index_fill(0, pick, True)
    return _ascending(picks, similarity)


@graphed
def determinantal(kernel: Tensor | Pairs, count: int, fill: Tensor | None = None) -> Tensor:
    """The subset with a large determinant of its kernel, by greedy picks: MAP inference of a determinantal process.

    d_j is the variance that is left of token j beside those picked. Picking j takes the row
    e = (L_j − Cᵀ c_j) / √d_j of a Cholesky factor C, and e² from every d (Chen et al., NeurIPS 2018). Of a variance
    of 1e-6 of the largest or less, only rounding is left: such tokens, those beyond the kernel's rank, go by `fill`.

    Args:
        kernel: (tokens, tokens), or `Pairs`: positive semidefinite.
        count: How many to pick.
        fill: (tokens,), the highest of which are picked where no variance is left; None: by index.

    Returns:
        (count,) int64, ascending.
    """
    _check(kernel, count)
    left = kernel.diagonal()
    least = left.amax() * NO_VARIANCE if len(left) else 0
    # Below 0, so below every variance that counts.
    by_fill = torch.zeros_like(left) if fill is None or not len(fill) else fill - fill.amax()
    taken = torch.zeros_like(left, dtype=torch.bool)
    factor = left.new_zeros(count, len(left))  # C, a row a pick
    picks = []
    for step in range(count):
        scores = torch.where(left > least, left, by_fill)
        pick = scores.masked_fill(taken, float("-inf")).argmax(dim=0, keepdim=True)
        picks.append(pick)
        before = factor[:step]
        row = kernel[pick] - before[:, pick].T @ before  # (1, tokens)
        row = torch.where(left[pick] > least, row[0] / left[pick].clamp(min=TINIEST).sqrt(), 0)
        factor[step] = row
        left = left - row.square()
        taken = taken.index_fill(0, pick, True)
    return _ascending(picks, left)


@graphed
def suppress(scores: Tensor, similarity: Tensor, threshold: Tensor | float, count: int) -> Tensor:
    """The highest scores of which no two are too similar: a walk by falling score that leaves out what is suppressed.

    A token that is kept suppresses all whose similarity to it is `threshold` or more. If too few are found, the
    highest suppressed scores fill up.

    Args:
        scores: (tokens,).
        similarity: (tokens, tokens).
        threshold: A number, or a tensor: of no dimension, or (tokens,), the threshold of the token that is kept.
        count: How many to keep.

    Returns:
        (count,) int64, ascending.
    """
    _check(similarity, count)
    tokens = len(scores)
    order = scores.sort(descending=True, stable=True).indices
    # Each token's place in the walk, counted from its end: the best has `tokens`, the last 1.
    places = torch.arange(tokens, 0, -1, device=scores.device)
    rank = torch.zeros_like(order).scatter(0, order, places)
    if not isinstance(threshold, Tensor):
        threshold = torch.full((), threshold, device=similarity.device)
    limit = threshold.to(similarity.device).expand(tokens)[:, None]
    # What is left of each rank once a token is kept: `tokens` less where it suppresses, behind all that it does not;
    # and twice as much less for the token itself. Worked out before, so that a pick takes three operators.
    token = torch.arange(tokens, device=scores.device)
    behind = (similarity >= limit).to(rank.dtype).masked_fill(token[:, None] == token, 2) * -tokens + rank
    left = rank[None]
    picks = []
    for _ in range(count):
        pick = left.argmax(dim=1)
        picks.append(pick)
        left = torch.minimum(left, behind[pick])
    return _ascending(picks, similarity)


def thin(order: Tensor, similarity: Tensor, count: int, per_round: int = 8) -> Tensor:
    """What is left of a list after near-duplicates have been taken out, a few a round.

    A round divides the list by the parity of places, A the even ones and B the odd ones. The members of A most similar
    to their nearest one in B leave, `per_round` or as many as are too many. The next list is the rest of A by falling
    similarity, then B in its order.

    Args:
        order: (list,) int64, the tokens in the order in which they stand; none of them twice.
        similarity: (tokens, tokens).
        count: How many to leave.
        per_round: How many leave in a round, 1 or more; half of the list at most.

    Returns:
        (count,) int64, ascending.
    """
    if not 0 <= count <= len(order):
        raise ShapeError(f"Cannot thin a list of {len(order)} tokens out to {count}.")
    if count == 0:
        return order[:0]
    while len(order) > count:
        even, odd = order[0::2], order[1::2]
        nearest = similarity[even[:, None], odd].amax(dim=1)
        leaving = min(per_round, len(order) - count)
        by_similarity = nearest.sort(descending=True, stable=True).indices
        # Where more should leave than A has, all of A does.
        order = torch.cat((even[by_similarity[leaving:]], odd))
    return order.sort().values


def quotas(weights: Tensor, room: Tensor, count: int) -> Tensor:
    """How many tokens each group may keep: `count` in all (or all that there are), in proportion to its weight.

    A group first gets its share rounded down; what that leaves goes to the heaviest groups, one token each. What a
    group has no room for is redistributed in proportion to weight times room left, in the same way, until all is
    placed.

    Args:
        weights: (groups,), 0 or more.
        room: (groups,) int64, how many tokens each group has.
        count: How many to keep.

    Returns:
        (groups,) int64.
    """
    weights = weights.float()
    room = room.to(torch.int64)
    least = torch.full_like(room.sum(), count).minimum(room.sum())
    got = torch.zeros_like(room)
    claims = weights
    for _ in range(min(ROUNDS, len(weights)) + 1):
        left = least - got.sum()
        has_room = room - got
        # Where nobody with room has any weight, room alone counts.
        claims = torch.where(claims.sum() > 0, claims, has_room.float())
        share = claims / claims.sum().clamp(min=TINIEST) * left
        floors = (share + HAIR).floor().long()
        order = claims.sort(descending=True, stable=True).indices
        # One more for the heaviest, as many as rounding down has left.
        is_heavy = torch.arange(len(order), device=order.device) < left - floors.sum()
        got = (got + floors + torch.zeros_like(order).scatter(0, order, is_heavy.to(order.dtype))).minimum(room)
        claims = weights * (room - got)
    # More rounds than any usual input needs; what is still left goes to the heaviest that have room.
    order = weights.sort(descending=True, stable=True).indices
    free = (room - got)[order]
    before = free.cumsum(0) - free
    more = (least - got.sum() - before).clamp(min=0).minimum(free)
    return got.scatter_add(0, order, more)


def _check(matrix: Tensor | Pairs, count: int) -> None:
    if not 0 <= count <= len(matrix):
        raise ShapeError(f"Cannot pick {count} tokens of {len(matrix)}.")


def _ascending(picks: list[Tensor], beside: Tensor) -> Tensor:
    if not picks:
        return torch.zeros(0, dtype=torch.int64, device=beside.device)
    return torch.cat(picks).sort().values


def pick_by_crop(grids: Sequence[Grid], rows: Tensor, count: int, pick: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`count` tokens of an image, picked crop by crop, each crop its share: (count,) int64, ascending.

    Args:
        grids: See `foveate.core.grid.crops_of`.
        rows: A tensor with the tokens in front; its length and device are read.
        count: How many to pick in all, 1 or more.
        pick: Picks so many of a crop's tokens, given their ordinals in the image; answers with ordinals in the crop.
            Crops that are alike run through it together, under `torch.func.vmap`.
    """
    crops = crops_of(grids, len(rows))
    few = shared_out(count, [len(crop) for crop in crops])
    picked = []
    for group in alike(zip(map(len, crops), few, strict=True)):
        number = few[group[0]]
        if not number:
            continue
        tokens = send(torch.stack([crops[place] for place in group]), rows.device)  # (crops, tokens of each)
        if len(group) == 1:
            places = pick(tokens[0], number)[None]
        else:
            places = torch.func.vmap(pick, in_dims=(0, None))(tokens, number)
        picked.append(tokens.gather(1, places).flatten())
    return torch.cat(picked).sort().values
