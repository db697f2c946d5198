"""Sets picked one token after another, for when a score alone does not say which tokens go together.

All are tensor code for one sample: one Python loop over picks, in which no value is read, so that on CUDA the loop is
one graph, and crops of equal size may run together under `torch.func.vmap`. Ties go to the lowest index, no token is
picked twice, and picks are returned ascending. `pick_by_crop` lets each base view, tile or frame contribute its share
of the picks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foveate.core.graphs import as_graph
from foveate.core.grid import Grid, crops_of
from foveate.core.merge import of_length_one
from foveate.core.rank import share_out
from foveate.core.tensors import BLOCK_NUMBERS, alike, blocks, send
from foveate.errors import ShapeError

NO_VARIANCE = 1e-6  # up to this share of the largest variance, a token has only rounding errors left
TINIEST = torch.finfo(torch.float32).tiny  # lower bound of a sum of weights used as divisor
ROUNDS = 16  # most rounds of a redistribution; each round ends it or fills a group
HAIR = 1e-5  # how much rounding may reduce a group's share, in tokens
GRID = 2.0**40  # exact cosines are multiples of 1 / GRID, 4,096 times the rounding of float64


def cosines(rows: Tensor, exact: bool = False, others: Tensor | None = None) -> Tensor:
    """The cosine of every two rows: (rows, width) of any dtype -> (rows, rows) float32, symmetric; float64 if exact.

    Args:
        rows: The rows.
        others: Rows to compare with instead, (others, width). The result is then (rows, others).
        exact: Compute in float64 and round to multiples of 2⁻⁴⁰. Then batched and plain products give the same values,
            and a row's cosine with itself is 1, so tied tokens do not depend on the kernel. (Rounding to float32 would
            make different cosines tie.) float32 on Apple's GPUs, which have no float64.
    """
    is_double = exact and rows.device.type != "mps"
    dtype = torch.float64 if is_double else torch.float32
    unit = of_length_one(rows, dtype=dtype)
    if others is None:
        product = unit @ unit.T
        # A kernel may round cos(a, b) and cos(b, a) differently; their mean is symmetric.
        product = (product + product.T).mul_(0.5)  # in place, since each copy is a matrix of all pairs
    else:
        product = unit @ of_length_one(others, dtype=dtype).T
    if is_double:
        return snap(product)
    return product


def snap(values: Tensor) -> Tensor:
    """Round float64 numbers of about 1 to multiples of 2⁻⁴⁰, in place, so that kernels' rounding differences tie."""
    return values.mul_(GRID).round_().div_(GRID)


def unlike_others(rows: Tensor) -> Tensor:
    """1 − (sum of the cosines of each row with the others) / rows: (rows, width) -> (rows,), multiples of 2⁻⁴⁰."""
    unit = of_length_one(rows, dtype=torch.float32 if rows.device.type == "mps" else torch.float64)
    others = unit @ unit.sum(dim=0) - unit.square().sum(dim=1)  # summing rows first avoids a matrix of all pairs
    return 1 - snap(others / len(rows))


class Pairs:
    """A matrix of all pairs of tokens that is never stored: indexing with tokens, (some,) int64, computes these rows.

    Args:
        rows: (tokens, width) of any dtype.
        make: Called with cosines, (some, tokens) float32, and the indices of their rows. Returns the rows of the
            matrix.
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
        """The diagonal of the matrix: (tokens,)."""
        places = torch.arange(len(self), device=self.device)
        return torch.cat([self[part].gather(1, part[:, None])[:, 0] for part in blocks(places, len(self))])


def pairs(rows: Tensor, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor | Pairs:
    """Return `Pairs`, or the matrix itself, (tokens, tokens), if it is not larger than a block."""
    if len(rows) ** 2 > BLOCK_NUMBERS:
        return Pairs(rows, make)
    return make(cosines(rows), torch.arange(len(rows), device=rows.device))


@as_graph
def max_min(distance: Tensor | Pairs, count: int) -> Tensor:
    """The subset whose smallest distance between two tokens is large, by greedy picks.

    The first pick is the token farthest from its nearest other token. Each next pick is farthest from its nearest
    picked token.

    Args:
        distance: (tokens, tokens), or `Pairs`. Column j has the distance of token j from each token; tokens can have
            weights.
        count: How many to pick.

    Returns:
        (count,) int64, ascending.
    """
    _check(distance, count)
    places = torch.arange(len(distance), device=distance.device)
    nearest = torch.full(places.shape, float("inf"), dtype=torch.float32, device=distance.device)
    scores = nearest  # (tokens,): distance to the nearest other token
    for part in blocks(places, len(places)):
        to_others = distance[part].masked_fill(part[:, None] == places, float("inf"))
        scores = torch.minimum(scores, to_others.amin(dim=0))
    picks = []
    # A picked token gets the distance −inf from itself, so it is never the farthest again. A matrix is filled once, so
    # that a pick takes three operators. Rows of `Pairs` are filled at each pick.
    apart: Tensor | Pairs = distance
    if isinstance(distance, Tensor):
        apart = distance.masked_fill(places[:, None] == places, float("-inf"))
    nearest, scores = nearest[None], scores[None]
    for _ in range(count):
        pick = scores.argmax(dim=1)  # (1,): indexing with a 1-D tensor needs no host sync
        picks.append(pick)
        row = apart[pick]
        if isinstance(apart, Pairs):
            row = row.index_fill(1, pick, float("-inf"))
        nearest = scores = torch.fmin(nearest, row)
    return _ascending(picks, places)


@as_graph
def cover(similarity: Tensor, count: int, saliency: Tensor | None = None) -> Tensor:
    """The subset that covers all targets best, by greedy picks (facility location).

    A target is covered as well as by its most similar picked candidate; by none, it is covered at 0. A candidate gains

        Σ_u max(0, similarity_ju − covered_u)  [· saliency_j]

    Each pick computes all gains anew, O(candidates · targets), from the running maximum `covered`. Subtracting only
    what the last pick has covered would round differently, and so change ties. Updating only the gains that may still
    win (gains never grow) would read values at each pick, for which the host waits for the GPU.

    Args:
        similarity: (candidates, targets). Each candidate is one row, even if candidates and targets are the same.
        count: How many to pick.
        saliency: (candidates,), the factor of each gain, 0 or more.

    Returns:
        (count,) int64, ascending.
    """
    _check(similarity, count)
    covered = torch.zeros_like(similarity.sum(dim=0))
    taken = torch.zeros_like(similarity.sum(dim=1), dtype=torch.bool)
    picks = []
    for _ in range(count):
        # One block of rows at a time: allocating a second matrix takes longer than the rest.
        gains = torch.cat([(rows - covered).relu_().sum(dim=1) for rows in blocks(similarity, len(covered))])
        if saliency is not None:
            gains = gains * saliency
        pick = gains.masked_fill(taken, float("-inf")).argmax(dim=0, keepdim=True)
        picks.append(pick)
        covered = torch.maximum(covered, similarity[pick][0])
        taken = taken.index_fill(0, pick, True)
    return _ascending(picks, similarity)


@as_graph
def determinantal(kernel: Tensor | Pairs, count: int, fill: Tensor | None = None) -> Tensor:
    """The subset whose kernel has a large determinant, by greedy picks: MAP inference of a determinantal point process.

    d_j is the variance left of token j given the picked tokens. Picking j adds the row e = (L_j − Cᵀ c_j) / √d_j to a
    Cholesky factor C, and subtracts e² from every d (Chen et al., NeurIPS 2018). A variance of at most 1e-6 of the
    largest is only rounding error. Such tokens, which lie beyond the kernel's rank, are picked by `fill`.

    Args:
        kernel: (tokens, tokens), or `Pairs`: positive semidefinite.
        count: How many to pick.
        fill: (tokens,). If no variance is left, the highest of these are picked. None: by index.

    Returns:
        (count,) int64, ascending.
    """
    _check(kernel, count)
    left = kernel.diagonal()
    least = left.amax() * NO_VARIANCE if len(left) else 0
    # At most 0, so below every variance that counts.
    by_fill = torch.zeros_like(left) if fill is None or not len(fill) else fill - fill.amax()
    taken = torch.zeros_like(left, dtype=torch.bool)
    factor = left.new_zeros(count, len(left))  # C: one row for each pick
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


@as_graph
def suppress(scores: Tensor, similarity: Tensor, threshold: Tensor | float, count: int) -> Tensor:
    """The highest scores of which no two are too similar: walk by falling score and skip suppressed tokens.

    A kept token suppresses all tokens whose similarity to it is `threshold` or more. If too few tokens remain, the
    highest suppressed scores fill up the count.

    Args:
        scores: (tokens,).
        similarity: (tokens, tokens).
        threshold: A number, or a tensor: without dimensions, or (tokens,), the threshold of each kept token.
        count: How many to keep.

    Returns:
        (count,) int64, ascending.
    """
    _check(similarity, count)
    tokens = len(scores)
    order = scores.sort(descending=True, stable=True).indices
    # Each token's place in the walk, counted from the end: the best token has `tokens`, the last one 1.
    places = torch.arange(tokens, 0, -1, device=scores.device)
    rank = torch.zeros_like(order).scatter(0, order, places)
    if not isinstance(threshold, Tensor):
        threshold = torch.full((), threshold, dtype=torch.float32, device=similarity.device)
    limit = threshold.to(similarity.device).expand(tokens)[:, None]
    # behind[i, j]: the rank of token j once i is kept. A suppressed token loses `tokens`, so it comes after all
    # others; i itself loses twice as much. Computed in advance, so that a pick takes three operators.
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
    """Thin out near-duplicates of a list, a few at a time.

    Each round divides the list by places: A has the even ones, B the odd ones. The members of A that are most similar
    to their nearest one in B are removed, at most `per_round` of them. The next list is the rest of A by falling
    similarity, then B in its order.

    Args:
        order: (list,) int64, the tokens in list order; none of them twice.
        similarity: (tokens, tokens).
        count: How many to keep.
        per_round: How many are removed in a round, 1 or more; half of the list at most.

    Returns:
        (count,) int64, ascending.
    """
    if not 0 <= count <= len(order):
        raise ShapeError(f"Cannot thin a list of {len(order)} tokens to {count}.")
    if count == 0:
        return order[:0]
    while len(order) > count:
        even, odd = order[0::2], order[1::2]
        nearest = similarity[even[:, None], odd].amax(dim=1)
        leaving = min(per_round, len(order) - count)
        by_similarity = nearest.sort(descending=True, stable=True).indices
        # If more should be removed than A has, all of A is removed.
        order = torch.cat((even[by_similarity[leaving:]], odd))
    return order.sort().values


def quotas(weights: Tensor, room: Tensor, count: int) -> Tensor:
    """Number of tokens that each group may keep: `count` in total, or all if fewer, in proportion to the weights.

    A group first gets its share rounded down. The remainder goes to the heaviest groups, one token each. What exceeds a
    group's room is redistributed in the same way, in proportion to weight times room left, until everything is placed.

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
        # If no group with room has any weight, distribute by room.
        claims = torch.where(claims.sum() > 0, claims, has_room.float())
        share = claims / claims.sum().clamp(min=TINIEST) * left
        floors = (share + HAIR).floor().long()
        order = claims.sort(descending=True, stable=True).indices
        # The remainder of rounding down goes to the heaviest groups, one token each.
        is_heavy = torch.arange(len(order), device=order.device) < left - floors.sum()
        got = (got + floors + torch.zeros_like(order).scatter(0, order, is_heavy.to(order.dtype))).minimum(room)
        claims = weights * (room - got)
    # The rounds are enough for any usual input. What is left goes to the heaviest groups that have room.
    order = weights.sort(descending=True, stable=True).indices
    free = (room - got)[order]
    before = free.cumsum(0) - free  # room of the heavier groups, which are filled first
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
    """Pick `count` tokens of an image crop by crop, each crop its share: (count,) int64, ascending.

    Args:
        grids: See `foveate.core.grid.crops_of`.
        rows: A tensor with the tokens as its first dimension. Only its length and device are read.
        count: How many to pick in total, 1 or more.
        pick: Called with the indices of a crop's tokens in the image, and how many to pick. Returns indices within the
            crop. Crops of equal size run through it together, under `torch.func.vmap`.
    """
    crops = crops_of(grids, len(rows))
    few = share_out(count, [len(crop) for crop in crops])
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
