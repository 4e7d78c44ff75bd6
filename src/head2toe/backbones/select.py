"""Which taps: presets, globs, and a budget of computation."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch.utils.flop_counter import FlopCounterMode

from head2toe.backbones.core import Backbone, Network
from head2toe.backbones.probe import BATCH, Role, Site
from head2toe.errors import BackboneError
from head2toe.taps import Tap


def select(backbone: Backbone, wanted: str | Sequence[str]) -> tuple[Tap, ...]:
    """The taps that a preset ("all", "blocks", "paper") or globs and names ask for, in order of execution.

    Names may be aliases (`layer1.0` for `layer1.0.act3`); commas separate several. BackboneError where one fits none.
    """
    words = [word.strip() for word in wanted.split(",")] if isinstance(wanted, str) else list(wanted)
    taps: dict[str, Tap] = {}
    for word in words:
        found = _PRESETS[word](backbone) if word in _PRESETS else _matching(backbone, word)
        taps.update((tap.name, tap) for tap in found)
    names = [name for site in backbone.sites for name in (site.tap.name, *site.aliases)]
    order = {name: k for k, name in enumerate(names)}
    return tuple(sorted(taps.values(), key=lambda tap: order[tap.name]))


def flops(backbone: Backbone) -> dict[str, int]:
    """Floating point operations of one input up to each tap, in its own network; "" holds the whole backbone's."""
    counts: dict[str, int] = {"": 0}
    for k, network in enumerate(backbone.networks):
        prefix = f"{k}:" if len(backbone.networks) > 1 else ""
        inner = _count(network, backbone)
        counts[""] += inner.pop("")
        counts |= {prefix + name: count for name, count in inner.items()}
    return counts


def cut(backbone: Backbone, max_flops_share: float) -> tuple[Tap, ...]:
    """The asked taps that a pass of at most `max_flops_share` (0..1] of the whole network's operations reaches.

    Several networks are given the same share each.
    """
    if not 0.0 < max_flops_share <= 1.0:
        raise BackboneError(f"cut: the share of operations should be in (0, 1], got {max_flops_share}")
    kept: list[Tap] = []
    for network, taps in _per_network(backbone):
        counts = _count(network, backbone)
        kept += [tap for name, tap in taps if counts[name] <= max_flops_share * counts[""]]
    if not kept:
        raise BackboneError(f"cut: no tap of {backbone.id} lies within {max_flops_share:.1%} of the operations")
    return tuple(kept)


def flops_of(backbone: Backbone, taps: Sequence[str]) -> int:
    """Operations of one input in a network that ends at the deepest of `taps`."""
    counts = flops(backbone)
    names = [backbone.tap(name).name for name in taps]
    if len(backbone.networks) == 1:
        return max((counts[name] for name in names), default=0)
    deepest: dict[str, int] = {}
    for name in names:
        head = name.partition(":")[0]
        deepest[head] = max(deepest.get(head, 0), counts[name])
    return sum(deepest.values())


def _per_network(backbone: Backbone) -> list[tuple[Network, list[tuple[str, Tap]]]]:
    if len(backbone.networks) == 1:
        return [(backbone.networks[0], [(tap.name, tap) for tap in backbone.taps])]
    return [
        (network, [(tap.name.partition(":")[2], tap) for tap in backbone.taps if tap.name.startswith(f"{k}:")])
        for k, network in enumerate(backbone.networks)
    ]


_COUNTED: WeakKeyDictionary[Network, dict[str, int]] = WeakKeyDictionary()


def _count(network: Network, backbone: Backbone) -> dict[str, int]:
    """Operations of one input up to every name and alias; a network is counted once."""
    if network not in _COUNTED:
        _COUNTED[network] = _counted_pass(network, backbone)
    return dict(_COUNTED[network])


def _counted_pass(network: Network, backbone: Backbone) -> dict[str, int]:
    batch = network.feed.collate([network.feed.example()] * BATCH, backbone.device)
    counter = FlopCounterMode(display=False)
    reached: dict[tuple[str, str], list[int]] = {}
    places = {(site.module, site.side) for site in network.by_name.values()}
    handles = []
    for name, side in places:
        part = network.module.get_submodule(name)

        def note(*_: object, place: tuple[str, str] = (name, side)) -> None:
            reached.setdefault(place, []).append(counter.get_total_flops() // BATCH)

        handles.append(part.register_forward_hook(note) if side == "output" else part.register_forward_pre_hook(note))
    try:
        with torch.no_grad(), counter:
            network.run(network.module, batch)
    finally:
        for handle in handles:
            handle.remove()
    counts = {name: reached[site.module, site.side][site.call - 1] for name, site in network.by_name.items()}
    return counts | {"": counter.get_total_flops() // BATCH}


def _matching(backbone: Backbone, pattern: str) -> list[Tap]:
    found = [site.tap for site in backbone.sites if fnmatch.fnmatchcase(site.tap.name, pattern)]
    return found or [backbone.tap(pattern)]


def _all(backbone: Backbone) -> list[Tap]:
    return [site.tap for site in backbone.sites]


def _blocks(backbone: Backbone) -> list[Tap]:
    """Outputs of blocks, without stages and without the parts of a block; and the pre-logits."""
    if not any("block" in site.roles for site in backbone.sites):
        raise BackboneError(f"{backbone.id}: this network has no blocks; use 'all' or globs")
    ends = set(backbone.all_prelogits())
    return [site.tap for site in backbone.sites if "block" in site.roles or site.tap.name in ends]


def _paper(backbone: Backbone) -> list[Tap]:
    """The published lists by their rule: 52 taps of a ResNet-50, 53 of a ViT-B/16 (Evci et al. 2022, its code)."""
    return [backbone.tap(name) for group in _groups(backbone) for name in _published(group)]


def _groups(backbone: Backbone) -> list[list[Site]]:
    """The sites of each network."""
    if len(backbone.networks) == 1:
        return [list(backbone.sites)]
    n = len(backbone.networks)
    return [[site for site in backbone.sites if site.tap.name.startswith(f"{k}:")] for k in range(n)]


def _published(sites: list[Site]) -> list[str]:
    """Transformers: stem, then normed input, attention, MLP hidden and MLP output of each block, final sequence, ends.

    Other networks: stem, activations, the last map, pre-logits, logits. The published lists name the last map of a
    ResNet and the class token of a ViT twice where the network returns them unchanged; so does this one, by an alias.
    """
    prelogits = next((site for site in sites if "prelogits" in site.roles), None)
    ends = [] if prelogits is None else [prelogits.tap.name]
    if any("attention" in site.roles and site.tap.layout == "NLC" for site in sites):
        names = [site.tap.name for site in sites if "stem" in site.roles]
        for k, site in enumerate(sites):
            if "attention" in site.roles:
                names += [*_last(sites[:k], "norm"), site.tap.name]
            elif "mlp" in site.roles:
                names += [*_last(sites[:k], "act"), site.tap.name]
        before = [site for site in sites if site is not prelogits]
        return [*names, *_last(before, "norm"), *ends, *(prelogits.aliases[:1] if prelogits else ())]
    body = [site for site in sites if {"act", "stem"} & site.roles and site is not prelogits]
    if not body:
        raise BackboneError("taps: the published lists hold activations, and this network shows none; use 'all'")
    stage = [alias for alias in body[-1].aliases[-1:] if "block" in body[-1].roles]
    return [*(site.tap.name for site in body), *stage, *ends, *(s.tap.name for s in sites if "logits" in s.roles)]


def _last(sites: list[Site], role: Role) -> list[str]:
    return [site.tap.name for site in sites if role in site.roles][-1:]


_PRESETS = {"all": _all, "blocks": _blocks, "paper": _paper}
