"""Linear and Control: a linear probe on the last features of one network, or of several side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from head2toe.errors import BackboneError
from head2toe.methods import frozen
from head2toe.methods.all_features import cross_validated_ridge
from head2toe.methods.outcome import Outcome
from head2toe.methods.problem import Journal, Problem
from head2toe.taps import Pool

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone, Network
    from head2toe.data import Task


@dataclass(frozen=True)
class Linear:
    """A linear layer on the pre-logits, its l2 strength cross-validated."""

    target_size: int = 512
    folds: int = 5
    seed: int = 0
    fit = frozen.fit

    @property
    def name(self) -> str:
        return "linear"

    @property
    def pools(self) -> tuple[Pool, ...]:
        return frozen.pools_of(self.target_size)

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        return frozen.last_features(backbone)

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        return probe(problem, self.pools[0], journal)


@dataclass(frozen=True)
class Control:
    """A linear layer on the pre-logits of networks of one architecture, pretrained independently (Table 1).

    It shows what an ensemble alone brings. The backbone is a joined one, `load_backbone("ID+ID")`; BackboneError for a
    single network, or for networks of different architectures.
    """

    target_size: int = 512
    folds: int = 5
    seed: int = 0
    fit = frozen.fit

    @property
    def name(self) -> str:
        return "control"

    @property
    def pools(self) -> tuple[Pool, ...]:
        return frozen.pools_of(self.target_size)

    def reads(self, backbone: Backbone, task: Task) -> tuple[str, ...]:
        if len(backbone.networks) < 2:
            raise BackboneError(
                f"control: {backbone.id} is one network, Control compares at least two of one architecture, pretrained "
                f"independently; join them as in --backbone '{backbone.id}+OTHER'"
            )
        first, *others = (_weight_shapes(network) for network in backbone.networks)
        if any(other != first for other in others):
            raise BackboneError(
                f"control: the networks of {backbone.id} differ in architecture, so that a gain would not be the "
                "ensemble's; join networks whose weights have the same names and shapes"
            )
        return frozen.last_features(backbone, *backbone.all_prelogits())

    def choose(self, problem: Problem, journal: Journal) -> Outcome:
        return probe(problem, self.pools[0], journal)


def probe(problem: Problem, pool: Pool, journal: Journal) -> Outcome:
    """A linear probe on whatever the problem reads."""
    with journal.phase("select"):
        choice = cross_validated_ridge(problem, pool, means_only=True)
    with journal.phase("fit"):
        return choice.fit()


def _weight_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape: what two trainings of one architecture share."""
    return {name: tuple(weight.shape) for name, weight in network.module.named_parameters()}
