"""Feeding: which rows of an unknown vision tower each vision token is made of, found by gradients.

The tower runs once with the output of each block detached from its input. Then tokens depend only on those rows, and a
gradient shows which rows a token is made of. Example: four rows, two for each token, after a CLS that feeds none.

    rows                       CLS 0 1 2 3
    gradient of both tokens      0 a b c d    a row with gradient 0 feeds no token: a CLS, a register, or padding
    gradient of token 1          0 0 0 c d    a row feeds only this token if its gradient is as above, else 0

Anything in between is a mixture, as from a resampler; then nothing of the tower is read. To distinguish up to 4,095
tokens even in half precision, this is done once for each bit of a token's number.

Window attention is recognised by what a call shows: a block whose window holds a whole image attends to whole images.
"""

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foveate._transformers import kind_of
from foveate.core.patching import Patcher
from foveate.core.signals import TowerAttention, TowerSignal
from foveate.errors import UnsupportedError
from foveate.families.placing import images_of, pieces_of
from foveate.families.tap import Tapped, tap
from foveate.families.tower import Encoded, ImageReducer, Inputs, Run, Taps, Tower, TowerLayout, block_of

CLS_NAMES = frozenset({"cls_token", "class_token", "class_embedding"})
"""Names of the parameter from which a tower's CLS starts."""
REMEMBERED = 64
"""How many calls of different shapes are cached for a model; the oldest is dropped first."""

NO_BLOCKS = "no block of its vision tower attends by transformers' attention functions"

Blocks = Sequence[tuple[nn.Module, Sequence[nn.Module]]]
"""The blocks of one list, each with its attention modules."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a tower that attend to one another, and to no others.

    Attributes:
        sample: The sample of the attention kernel that contains them. The kernel runs for all images at once, or for
            each one.
        rows: Their places in that sample, a CLS first; a slice if these are all.
        cls: True if there is a CLS.
        tokens: Which token of the call each row feeds, without the CLS: (rows,) int64.
    """

    sample: int
    rows: Tensor | slice
    cls: bool
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class Feeding:
    """The rows that feed the tokens of a call.

    Attributes:
        attentions: The attention module of each block of the tower. None for a block that cannot be read.
        last: The last block whose rows are used.
        seeing: Blocks that attend to whole images. Others use windows, or rows that are merged later.
        lengths: Number of rows in each of the kernel's samples there.
        groups: Rows that attend to one another.
        tokens: Number of tokens.
    """

    attentions: tuple[nn.Module | None, ...]
    last: int
    seeing: tuple[int, ...]
    lengths: tuple[int, ...]
    groups: tuple[Group, ...]
    tokens: int

    def attention_of(self, signal: TowerSignal) -> nn.Module:
        """The attention module from which a signal is read.

        Raises:
            UnsupportedError: If it cannot be read there.
        """
        if isinstance(signal, TowerAttention) and signal.by == "cls" and not all(group.cls for group in self.groups):
            raise UnsupportedError(
                "This model's vision tower has no CLS beside the rows that tokens are made of, so TowerAttention(by="
                "'cls') cannot be read. Use by='patches'."
            )
        module = self.attentions[block_of(signal, self.last, len(self.attentions), self.seeing)]
        assert module is not None  # every block in `seeing` has an attention
        return module

    def token_means(self, signal: TowerSignal, samples: Sequence[Tapped]) -> Tensor:
        """Means over the rows of each token, (tokens, numbers) float32; zeros for a token that no row feeds.

        Args:
            signal: The signal to read.
            samples: The attention module's queries and keys in each of the kernel's samples.
        """
        of_rows = [samples[group.sample].at(group.rows).read(signal, group.cls) for group in self.groups]
        owners, values = torch.cat([group.tokens for group in self.groups]), torch.cat(of_rows)
        # owners (rows,), values (rows, numbers) -> totals (tokens, numbers)
        totals = values.new_zeros(self.tokens, values.shape[1]).index_add(0, owners, values)
        counts = values.new_zeros(self.tokens).index_add(0, owners, values.new_ones(len(owners)))
        return totals / counts.clamp(min=1)[:, None]

    @property
    def is_fed(self) -> Tensor:
        """Mark the tokens that are made of rows, (tokens,) bool. Learned newlines are not."""
        owners = torch.cat([group.tokens for group in self.groups])
        return torch.zeros(self.tokens, dtype=torch.bool, device=owners.device).index_fill(0, owners, True)


# -- which blocks there are ----------------------------------------------------------------------------------------


def blocks_of(core: nn.Module, decoder: nn.Module) -> list[Blocks]:
    """The lists of blocks outside a decoder whose attention can be tapped, such as a tower's or a resampler's.

    Args:
        core: The module with `get_image_features`.
        decoder: The decoder's layers, which are left out.
    """
    outside = set(map(id, decoder.modules()))
    lists: list[Blocks] = []
    for module in core.modules():
        if not isinstance(module, nn.ModuleList) or id(module) in outside:
            continue
        blocks = [(block, [part for part in block.modules() if _attends(part)]) for block in module]
        inner = [part for block in module for part in block.modules() if isinstance(part, nn.ModuleList)]
        is_inmost = not any(_attends(part) for nested in inner for part in nested.modules())
        if is_inmost and any(attentions for _, attentions in blocks):
            lists.append(blocks)
    return lists


def _attends(module: nn.Module) -> bool:
    """True if a module passes queries and keys to a kernel of transformers. False if it has no source code."""
    try:
        return kind_of(module) == "attention"
    except UnsupportedError:
        return False


def has_cls(core: nn.Module) -> bool:
    """True if a model's vision tower has a CLS, by the name of its parameter."""
    return any(name.rpartition(".")[2] in CLS_NAMES for name, _ in core.named_parameters())


# -- which rows feed which token -----------------------------------------------------------------------------------

_FEEDINGS: WeakKeyDictionary[nn.Module, dict[Hashable, Feeding]] = WeakKeyDictionary()


def feeding(family: Any, run: Run, inputs: Inputs, anew: bool = False) -> Feeding:
    """Find the rows that feed each token of a `get_*_features` call; cached by its arguments' shapes and integers.

    Args:
        family: Knows the `core` and the decoder's `layers`.
        run: Calls the original.
        inputs: Its arguments.
        anew: Ignore the cache and measure again.

    Raises:
        UnsupportedError: If tokens are mixtures of rows, or that cannot be determined.
    """
    remembered = _FEEDINGS.setdefault(family.core, {})
    key = tuple((name, _key(inputs[name])) for name in sorted(inputs))
    if anew or key not in remembered:
        remembered.pop(key, None)
        while len(remembered) >= REMEMBERED:
            del remembered[next(iter(remembered))]
        remembered[key] = _measure(family, run, inputs)
    return remembered[key]


def _key(value: Any) -> Hashable:
    """The shape of pixels; other values themselves."""
    if isinstance(value, Tensor):
        are_pixels = value.is_floating_point() or value.dtype == torch.uint8
        return value.shape, value.dtype, value.device, None if are_pixels else value.cpu().numpy().tobytes()
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if not isinstance(value, bool | int | float | str):
        return None
    return value


class _Look(NamedTuple):
    """One sample of an attention kernel's call: its number of rows, and which see which, (rows, rows). None: all."""

    rows: int
    visible: Tensor | None


class _Trace:
    """Records what the blocks of a tower did in a run in which they are detached from one another."""

    def __init__(self) -> None:
        self.leaves: dict[nn.Module, list[Tensor]] = {}
        self.looks: dict[nn.Module, list[_Look] | None] = {}  # by attention module. None: it cannot be read

    def attach(self, patches: Patcher, lists: Sequence[Blocks], others: Sequence[nn.Module]) -> None:
        """Watch all blocks, and the modules `others`, until the patcher restores them."""
        for module in others:
            patches.hook(module, "after", self._let_through)
        for block, attentions in [pair for blocks in lists for pair in blocks]:
            # Run before the hooks with which transformers records hidden states, so that they record the detached rows.
            patches.hook(block, "after", self._cut_off, prepend=True)
            for attention in attentions:
                tap(patches, attention, lambda *_: None, partial(self._note, attention))

    def _cut_off(self, block: nn.Module, args: Any, output: Any) -> Any:
        rows = output[0] if isinstance(output, tuple) else output
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            return None
        leaf = rows.detach().requires_grad_()
        self.leaves.setdefault(block, []).append(leaf)
        # Return a copy, because the model may write into it.
        if isinstance(output, tuple):
            return (leaf.clone(), *output[1:])
        return leaf.clone()

    def _let_through(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Give an output the gradient that a kernel for quantised weights lacks: any that leads row by row."""
        rows = args[0] if args and isinstance(args[0], Tensor) else None
        if rows is None or not isinstance(output, Tensor) or not rows.requires_grad:
            return None
        has_own = output.grad_fn is not None and "NotImplemented" not in output.grad_fn.name()
        if has_own or output.shape[:-1] != rows.shape[:-1]:
            return None
        random = torch.Generator().manual_seed(0)
        into, out = (torch.randn(side.shape[-1], generator=random).to(side) for side in (rows, output))
        # Adds zero with the gradient of (rows · into) out, so the output does not change, bit for bit.
        return output.detach() + ((rows - rows.detach()) @ into)[..., None] * out

    def _note(self, attention: Any, queries: Tensor, keys: Tensor, mask: Any, options: Mapping[str, Any]) -> None:
        looks, rows = self.looks.setdefault(attention, []), queries.shape[2]
        visible = _visible(mask, len(queries), rows)
        # Options that also change the result, or that replace the mask.
        odd = [options.get(name) for name in ("softcap", "s_aux", "cu_seq_lens_q")]
        if mask is None:
            odd += [options.get("position_ids"), getattr(attention, "is_causal", False) or None]
        if looks is None or visible is None or keys.shape[2] != rows or any(value is not None for value in odd):
            self.looks[attention] = None
        else:
            looks += [_Look(rows, sample) for sample in visible]

    def work(self, blocks: Blocks) -> tuple[int, int]:
        """Number of attention calls in some blocks, and of their rows."""
        looks = [self.looks.get(attention) or [] for _, attentions in blocks for attention in attentions]
        return sum(map(bool, looks)), sum(look.rows for of_one in looks for look in of_one)


def _visible(mask: Any, samples: int, rows: int) -> Sequence[Tensor | None] | None:
    """The rows that each row sees in each sample, (rows, rows) bool each; None entries: all see all.

    None instead of a list: this kind of mask is not known.
    """
    if mask is None:
        return [None] * samples
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    if mask.dim() == 2:
        mask = mask[:, None, None].bool()
    elif mask.shape[1] != 1:
        return None
    elif mask.is_floating_point():
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        if (mask.masked_fill(hidden, 0) != 0).any():
            return None  # a bias: probabilities depend on more than queries and keys
        mask = ~hidden
    return [sample[0] for sample in mask.bool().expand(samples, 1, rows, rows)]


def _measure(family: Any, run: Run, inputs: Inputs) -> Feeding:
    """Compute `feeding`. This costs about two runs: the tower's, and backward passes through the projector."""
    lists = blocks_of(family.core, family.layers)
    if not lists:
        raise _unread(family, NO_BLOCKS)
    trace = _Trace()
    # Gradients are needed even if the caller has disabled them, as is usual.
    with torch.inference_mode(False), torch.enable_grad():
        try:
            with Patcher() as patches:
                inside = set(map(id, family.layers.modules()))
                outside = [part for part in family.core.modules() if id(part) not in inside]
                # Linear layers of any kind of weights: modules without children, or with "linear" in their type.
                linear = [p for p in outside if not [*p.children()] or "linear" in type(p).__name__.lower()]
                trace.attach(patches, lists, linear)
                # Autograd cannot save inference tensors, but it can save copies made here.
                tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
                output = run(**{name: tensor.clone() for name, tensor in tensors.items() if tensor.is_inference()})
            tokens = torch.cat([piece.flatten(0, -2) for piece in pieces_of(output)])
            ran = [blocks for blocks in lists if any(block in trace.leaves for block, _ in blocks)]
            if not ran:
                raise _unread(family, "none of its blocks ran")
            blocks = max(ran, key=trace.work)  # ties go to the first, which is nearer to the pixels
            last, owners = _owners(family, trace, blocks, tokens)
        except (UnsupportedError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise _unread(
                family, f"no gradient flows through the modules that make them ({str(error).splitlines()[0]})"
            ) from error
        return _group_rows(family, trace, blocks, last, owners, len(tokens))


def _owners(family: Any, trace: _Trace, blocks: Blocks, tokens: Tensor) -> tuple[int, Tensor]:
    """The last block that tokens are made of, and which token each of its rows feeds, (rows,) int64; −1: none.

    Raises:
        UnsupportedError: If a row feeds several tokens.
    """
    direction = torch.randn(tokens.shape[-1], generator=torch.Generator().manual_seed(0)).to(tokens.device)
    sums = tokens.float() @ direction  # (tokens,)
    leaves = [trace.leaves.get(block, []) for block, _ in blocks]
    for last in reversed(range(len(blocks))):
        grads = _gradients(sums, leaves[last])
        if grads is not None:
            break
    else:
        if not sums.requires_grad:
            raise _unread(family, "no gradient flows through the modules that make them, as with quantised layers")
        raise _unread(family, "they are computed from what follows its blocks, such as a resampler's queries")
    largest = grads.abs().amax(dim=-1, keepdim=True)
    fed = largest[:, 0] > 0
    largest = largest.clamp(min=torch.finfo(grads.dtype).tiny)
    grads = grads / largest
    leak = {torch.float32: 1e-3, torch.float64: 1e-3}.get(leaves[last][0].dtype, 0.02)  # tolerance for rounding
    numbers = torch.arange(len(tokens), device=tokens.device)
    owners = torch.zeros_like(fed, dtype=torch.long)
    # Row by row, read the number of its token bit by bit: sum only the tokens whose number has this bit. A row's
    # gradient is then the full one (bit 1) or zero (bit 0).
    for bit in range((len(tokens) - 1).bit_length()):
        part = _gradients(sums[(numbers >> bit) % 2 == 1], leaves[last])
        part = torch.zeros_like(grads) if part is None else part / largest
        is_set = (part * grads).sum(dim=-1) > (grads * grads).sum(dim=-1) / 2
        expected = grads * is_set[:, None]
        if ((part - expected).abs() > leak).any():
            raise _unread(family, "a row of it feeds several tokens, as in a resampler or a convolution")
        owners += is_set.long() << bit
    return last, owners.masked_fill(~fed, -1)


def _gradients(sums: Tensor, leaves: Sequence[Tensor]) -> Tensor | None:
    """The gradient of the sum at the rows of `leaves`, (rows, width) float32. None if it is zero."""
    if not leaves or not sums.requires_grad:
        return None
    grads = torch.autograd.grad(sums.sum(), leaves, retain_graph=True, allow_unused=True)
    if all(grad is None or not grad.any() for grad in grads):
        return None
    filled = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True)]
    return torch.cat([grad.flatten(0, -2).float() for grad in filled])


def _group_rows(family: Any, trace: _Trace, blocks: Blocks, last: int, owners: Tensor, tokens: int) -> Feeding:
    """Group the rows that attend to one another in the blocks that attend to whole images.

    Raises:
        UnsupportedError: If there is no such block, or rows feed no token and are not a CLS.
    """
    shapes = [leaf.shape for leaf in trace.leaves[blocks[last][0]]]
    # A kernel's samples are the rows of a block's output, in order. For a packed sequence the kernel may be called
    # for each image, or window.
    is_packed = all(shape[:-2].numel() == 1 for shape in shapes)
    batch = [shape[-2] for shape in shapes for _ in range(shape[:-2].numel())]
    attentions: list[nn.Module | None] = []
    groups: dict[int, tuple[Group, ...]] = {}
    lengths: dict[int, tuple[int, ...]] = {}
    for index, (_, modules) in enumerate(blocks):
        attention = modules[0] if len(modules) == 1 else None
        attentions.append(attention)
        looks = None if attention is None else trace.looks.get(attention)
        rows = [look.rows for look in looks or ()]
        if looks and (sum(rows) == sum(batch) if is_packed else rows == batch):
            of_block = list(_groups(family, looks, owners))
            if None not in of_block:
                groups[index] = tuple(group for group in of_block if group is not None)
                lengths[index] = tuple(rows)
    if not groups:
        raise _unread(family, "it is not known which rows attend to one another in its blocks")
    fewest = min(map(len, groups.values()))
    seeing = tuple(index for index, of_block in groups.items() if len(of_block) == fewest)
    first = seeing[0]
    return Feeding(tuple(attentions), last, seeing, lengths[first], groups[first], tokens)


def _groups(family: Any, looks: Sequence[_Look], owners: Tensor) -> Iterator[Group | None]:
    """Yield the rows that attend to one another and feed tokens; None if some of them attend to others too."""
    cls = has_cls(family.core)
    for sample, (look, own) in enumerate(zip(looks, torch.split(owners, [look.rows for look in looks]), strict=True)):
        fed = own >= 0
        todo = fed
        while todo.any():
            first = int(todo.int().argmax())
            seen = torch.ones_like(fed) if look.visible is None else look.visible[first]
            members = seen & fed
            if (look.visible is not None and (look.visible[members] != seen).any()) or not members[first]:
                yield None
                return
            beside = (seen & ~fed).nonzero()[:, 0]  # at most a CLS
            if len(beside) > int(cls):
                why = f"{len(beside)} rows beside a picture's patches feed no token: registers, or unmasked padding"
                raise _unread(family, why)
            is_all = not len(beside) and bool(members.all())
            rows = slice(None) if is_all else torch.cat((beside, members.nonzero()[:, 0]))
            yield Group(sample, rows, len(beside) > 0, own[members])
            todo = todo & ~members


def _unread(family: Any, why: str) -> UnsupportedError:
    """The error for a tower that cannot be read."""
    return UnsupportedError(
        f"foveate cannot tell from which rows of the vision tower {type(family.model).__name__} makes its vision "
        f"tokens: {why}. Use a method that does not read the tower, or one that drops between layers."
    )


# -- reading a tower -----------------------------------------------------------------------------------------------


def encode_fed(family: Any, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
    """`Family.encode` after the projector. A token's attention and key are the means over the rows that feed it.

    Raises:
        UnsupportedError: If a method reads the tower, and it is not known which rows feed which token.
    """
    if not reducer.reads:
        output = run()
        return output, family.reduce_features(output, modality, inputs, reducer)
    for anew in (False, True):
        fed = feeding(family, run, inputs, anew)
        modules = {signal: fed.attention_of(signal) for signal in reducer.reads}
        taps = Taps(modules, family.towers or [family.core], keys_of="unknown", parts=True)
        output = taps.run(run)
        if taps.lengths == fed.lengths:  # else they depend on more than shapes, for example on black images
            break
    sizes = [len(image) for image in images_of(output, reducer.lengths if family.tiled else None)]
    ranked = _ranked_tokens(family, modality, inputs, fed, sizes)

    @functools.cache
    def stats(signal: TowerSignal) -> tuple[Tensor, ...]:
        images = torch.split(fed.token_means(signal, taps.samples(signal)), sizes)
        return tuple(image[own] for image, own in zip(images, ranked, strict=True))

    return output, family.reduce_features(output, modality, inputs, reducer, stats)


def tower_by_feeding(family: Any, run: Run, inputs: Inputs) -> Tower:
    """A tower whose blocks may run on some rows, found by what its blocks attended to in a run. Every block is read.

    Raises:
        UnsupportedError: If a block uses window attention or cannot be read, or if rows that feed no token are not a
            CLS in front of an image's rows.
    """
    fed = feeding(family, run, inputs)
    lists = blocks_of(family.core, family.layers)
    blocks = next((one for one in lists if [part for _, parts in one for part in parts] == list(fed.attentions)), ())
    cls = {int(group.cls) for group in fed.groups}
    is_complete = [len(group.tokens) + int(group.cls) for group in fed.groups] == list(fed.lengths)
    is_complete &= all(isinstance(group.rows, slice) or bool((group.rows.diff() == 1).all()) for group in fed.groups)
    if not blocks or len(fed.seeing) < len(blocks) or len(cls) > 1 or not is_complete:
        raise UnsupportedError(
            f"foveate cannot drop rows inside the vision tower of {type(family.model).__name__}: for some blocks it "
            "does not know which rows attend to which. Use a method without thintower."
        )
    layout = TowerLayout(fed.lengths, [None] * len(fed.groups), cls=cls.pop())
    modules = [block for block, _ in blocks]
    return Tower(family.core, modules, list(fed.attentions), range(len(modules)), layout)


def _ranked_tokens(
    family: Any, modality: str, inputs: Inputs, fed: Feeding, sizes: Sequence[int]
) -> list[Tensor | slice]:
    """Mark the tokens of each image that are not newlines.

    Raises:
        UnsupportedError: If a token is made of no row, and the family does not say that it is a newline or always
            stays.
    """
    if bool(fed.is_fed.all()):
        return [slice(None)] * len(sizes)
    ranked = list[Tensor | slice]()
    pictures = family.pictures(family.model.config, modality, inputs, sizes)
    for is_fed, picture in zip(torch.split(fed.is_fed.cpu(), list(sizes)), pictures, strict=True):
        is_newline = torch.zeros_like(is_fed)
        is_newline[[*picture.beside]] = True
        if not (is_fed | is_newline).all():
            raise UnsupportedError(
                f"{int((~is_fed).sum())} of {len(is_fed)} vision tokens of a picture come from no row of the tower "
                "(newlines or separators), and foveate cannot tell which. Use a method that drops between layers."
            )
        ranked.append(~is_newline)
    return ranked
