"""`Backbone`: a frozen network with its taps, preprocessing and fingerprint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from head2toe import images
from head2toe.backbones.folding import folded
from head2toe.backbones.probe import BATCH as PROBED
from head2toe.backbones.probe import Site, first_tensor
from head2toe.errors import BackboneError
from head2toe.taps import Tap

Precision = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")
_ONE_AT_A_TIME = threading.Lock()  # hooks sit on the shared module: two threads would see each other's outputs
_SEPARATOR = ":"


@runtime_checkable
class Preprocess(Protocol):
    """One encoded input (bytes, array or text) to the array that `Backbone.collate` stacks; picklable."""

    def __call__(self, encoded: bytes | np.ndarray | str, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one pass on the device: positional or keyword arguments, and `mask` (n, L) of the real tokens."""

    args: tuple[Tensor, ...] = ()
    kwargs: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None


@runtime_checkable
class Feed(Protocol):
    """How one family's preprocessed rows become a batch, and an example row to find the taps with."""

    def collate(self, rows: Sequence[np.ndarray], device: str) -> Batch: ...

    def example(self) -> np.ndarray: ...


Run = Callable[[nn.Module, Batch], object]


def call_module(module: nn.Module, batch: Batch) -> object:
    """The ordinary way to run a network."""
    return module(*batch.args, **batch.kwargs)


@dataclass(frozen=True, eq=False)
class Network:
    """One frozen module, how to feed it and where to read it."""

    module: nn.Module
    feed: Feed
    run: Run
    sites: tuple[Site, ...]

    @cached_property
    def by_name(self) -> dict[str, Site]:
        """Every tap under its name and its aliases; an alias is the same tensor under another name."""
        aliases = {
            alias: replace(site, tap=replace(site.tap, name=alias)) for site in self.sites for alias in site.aliases
        }
        return aliases | {site.tap.name: site for site in self.sites}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network, or several side by side.

    `taps` are what was asked for when loading, in order of execution; `sites` are all there are. `fingerprint` is a
    sha256 over architecture, every weight, preprocessing and precision; `n_bytes` the size of a float32 checkpoint.
    """

    id: str
    taps: tuple[Tap, ...]
    preprocess: Preprocess
    fingerprint: str
    precision: Precision
    device: str
    n_bytes: int
    networks: tuple[Network, ...]

    @property
    def check(self) -> Callable[[bytes | np.ndarray | str], object]:
        """Raises DataError for an input that cannot be read, without preprocessing it: a picture unless it says so."""
        return getattr(self.preprocess, "check", images.check)

    @property
    def prelogits(self) -> str:
        """The tap that a linear probe reads: what enters the classifier (of the first network, if several)."""
        return self._ends()[0].tap.name

    @property
    def logits(self) -> str | None:
        """The network's own class scores; None where it has no classifier."""
        return next((site.tap.name for site in self.sites if "logits" in site.roles), None)

    def all_prelogits(self) -> tuple[str, ...]:
        """The pre-logits of each network: what the Control method puts side by side."""
        return tuple(site.tap.name for site in self._ends())

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every place that can be tapped, asked for or not."""
        return tuple(self._prefixed(k, site) for k, network in enumerate(self.networks) for site in network.sites)

    def tap(self, name: str) -> Tap:
        """The tap called `name`, by its own name or an alias; BackboneError with near names where there is none."""
        k, inner = self._inside(name)
        return self._prefixed(k, self.networks[k].by_name[inner]).tap

    def collate(self, rows: list[np.ndarray]) -> tuple[Batch, ...]:
        """Preprocessed rows to one batch per network, on the device, normalised."""
        if not rows:
            raise BackboneError(f"{self.id}: collate needs at least one input, got none")
        return tuple(
            network.feed.collate(part, self.device)
            for network, part in zip(self.networks, _split_rows(rows, len(self.networks)), strict=True)
        )

    def forward(
        self,
        batch: tuple[Batch, ...],
        taps: Sequence[str],
        reduce: Callable[[Tap, Tensor, Tensor | None], T],
        *,
        gradients: bool = False,
    ) -> dict[str, T]:
        """One frozen pass up to the deepest of `taps`; each output goes through `reduce(tap, output, mask)` at once.

        Inside the hook, so that nothing of a full map is kept; the hooks are always removed. `mask` (n, L) marks the
        real tokens of padded sequences. gradients=True lets what `reduce` makes be differentiated, to train a copy of
        the network. BackboneError for an unknown tap, or an output that is not shaped as planned.
        """
        wanted: list[list[tuple[Site, Tap]]] = [[] for _ in self.networks]
        for name in dict.fromkeys(taps):
            k, inner = self._inside(name)
            site = self.networks[k].by_name[inner]
            wanted[k].append((site, self._prefixed(k, site).tap))
        results: dict[str, T] = {}
        mode = torch.enable_grad if gradients else torch.inference_mode
        with _ONE_AT_A_TIME, mode():
            for network, part, asked in zip(self.networks, batch, wanted, strict=True):
                if asked:
                    _pass(network, part, asked, reduce, results, self._around(network, asked, gradients=gradients))
        return {name: results[name] for name in taps}

    @contextmanager
    def _around(self, network: Network, asked: Sequence[tuple[Site, Tap]], *, gradients: bool) -> Iterator[None]:
        """What a pass runs in: the number format, and frozen normalisations in their convolutions."""

        def small_pass(see: Callable[[Tensor | None], None]) -> None:
            batch = network.feed.collate([network.feed.example()] * PROBED, self.device)
            _pass(network, batch, asked, lambda tap, output, mask: see(output), {}, nullcontext())

        with ExitStack() as stack:
            if self.precision != "float32":
                stack.enter_context(torch.autocast(torch.device(self.device).type, getattr(torch, self.precision)))
            if not gradients:
                read = frozenset((site.module, site.side, site.call) for site, _ in asked)
                stack.enter_context(folded(network.module, (read, self.precision), small_pass))
            yield

    def _ends(self) -> list[Site]:
        return [
            next((site for site in reversed(group) if "prelogits" in site.roles), group[-1])
            for group in ([self._prefixed(k, s) for s in network.sites] for k, network in enumerate(self.networks))
        ]

    def _prefixed(self, k: int, site: Site) -> Site:
        if len(self.networks) == 1:
            return site
        aliases = tuple(f"{k}{_SEPARATOR}{alias}" for alias in site.aliases)
        return replace(site, tap=replace(site.tap, name=f"{k}{_SEPARATOR}{site.tap.name}"), aliases=aliases)

    def _inside(self, name: str) -> tuple[int, str]:
        """(which network, its own name of the tap)."""
        head, _, rest = name.partition(_SEPARATOR)
        k, inner = (int(head), rest) if len(self.networks) > 1 and head.isdigit() else (0, name)
        if k < len(self.networks) and inner in self.networks[k].by_name:
            return k, inner
        from difflib import get_close_matches

        known = [site.tap.name for site in self.sites]
        near = get_close_matches(name, known, 3) or known[-3:]
        raise BackboneError(f"{self.id}: no tap is called '{name}'; near names: {', '.join(near)}; see 'head2toe taps'")


class _EnoughError(BaseException):
    """The deepest asked tap was read; the rest of the network need not run, nor may it catch this by `Exception`."""


def _pass(
    network: Network,
    batch: Batch,
    asked: Sequence[tuple[Site, Tap]],
    reduce: Callable[[Tap, Tensor, Tensor | None], T],
    results: dict[str, T],
    around: AbstractContextManager[object],
) -> None:
    left, gradients = len(asked), torch.is_grad_enabled()
    calls: dict[tuple[str, str], int] = {}
    places: dict[tuple[str, str], list[tuple[Site, Tap]]] = {}
    for site, tap in asked:
        places.setdefault((site.module, site.side), []).append((site, tap))

    def read(place: tuple[str, str], value: object) -> None:
        nonlocal left
        calls[place] = calls.get(place, 0) + 1
        for site, tap in places[place]:
            if site.call == calls[place]:
                output = first_tensor(value)
                mask = _check(tap, output, batch)
                assert output is not None
                if gradients and not output.requires_grad:
                    raise BackboneError(
                        f"forward: tap '{tap.name}' is computed without gradients, so that nothing before it can be "
                        "trained; checkpoint with use_reentrant=False, or keep the network frozen (--method head2toe)"
                    )
                results[tap.name] = reduce(tap, output, mask)
                left -= 1
        if left == 0:
            raise _EnoughError

    with ExitStack() as stack:
        stack.enter_context(around)
        for place in places:
            stack.callback(_hook(network.module.get_submodule(place[0]), place, read))
        try:
            network.run(network.module, batch)
        except _EnoughError:
            return
    lost = [tap.name for _, tap in asked if tap.name not in results]
    raise BackboneError(f"forward: the network did not compute {lost} this time; it chooses its path by its input")


def _hook(
    part: nn.Module, place: tuple[str, str], read: Callable[[tuple[str, str], object], None]
) -> Callable[[], None]:
    """Read the output (or first input) of `part`; returns how to take the hook away."""
    if place[1] == "output":
        return part.register_forward_hook(lambda _part, _args, output: read(place, output)).remove
    return part.register_forward_pre_hook(
        lambda _part, args, kwargs: read(place, args if args else list(kwargs.values())), with_kwargs=True
    ).remove


def _check(tap: Tap, output: Tensor | None, batch: Batch) -> Tensor | None:
    """The mask that belongs to this output; refuses a shape that was not planned."""
    got = None if output is None else tuple(output.shape)
    size = len(batch.args[0] if batch.args else next(iter(batch.kwargs.values())))
    mask = batch.mask
    if mask is not None and tap.layout == "NLC" and got is not None and got[1] == mask.shape[1]:
        if got[0] == size and got[2] == tap.shape[1]:
            return mask
    elif got == (size, *tap.shape):
        return None
    raise BackboneError(
        f"forward: tap '{tap.name}' should be {(size, *tap.shape)} ({tap.layout}), got {got}; its shape changes with "
        "the input or the batch, leave it out"
    )


def _split_rows(rows: list[np.ndarray], n: int) -> list[list[np.ndarray]]:
    """Each network's own rows: one network's as they are, several networks' unpacked."""
    if n == 1:
        return [rows]
    parts = [unpack(row) for row in rows]
    return [[part[k] for part in parts] for k in range(n)]


def pack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Several arrays as one row of bytes, (m,) uint8: what several networks want of one input."""
    import io

    stream = io.BytesIO()
    for array in arrays:
        np.save(stream, array, allow_pickle=False)
    return np.frombuffer(stream.getvalue(), np.uint8)


def unpack(row: np.ndarray) -> list[np.ndarray]:
    """The arrays that `pack` took."""
    import io

    stream, arrays = io.BytesIO(row.tobytes()), list[np.ndarray]()
    while stream.tell() < row.nbytes:
        arrays.append(np.load(stream, allow_pickle=False))
    return arrays
