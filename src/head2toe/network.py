"""`Network`: a whole network trained for one task, the opponent of a head; saved, loaded, and able to predict."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from head2toe.backbones import load_backbone
from head2toe.backbones.core import Backbone, Batch
from head2toe.data.prepare import prepared
from head2toe.data.task import Source
from head2toe.errors import HeadError
from head2toe.extract.passes import decoders
from head2toe.gather import Encoded, encoded, pooled
from head2toe.head import (
    FORMAT,
    Head,
    KeptTap,
    Metrics,
    Provenance,
    check_config,
    columns_of,
    describe_kept,
    described,
    kept_of,
    load_head,
    picture_options,
    read_config,
    read_folder,
    softmax,
    write_folder,
)
from head2toe.table import Scaling

BATCH = 32


class Tapped(nn.Module):
    """A copy of a backbone's networks, every weight free, and a linear layer on kept columns of its taps.

    What a `Head` computes, softmax(features W + b) with W (k, C) and b (C,), but differentiable down to the first
    layer. `bodies` are the networks; they run no deeper than the deepest kept tap. It starts in evaluation mode.
    """

    def __init__(
        self, backbone: Backbone, kept: Sequence[KeptTap], scaling: Scaling, W: np.ndarray, b: np.ndarray
    ) -> None:
        super().__init__()
        networks = tuple(replace(one, module=copy.deepcopy(one.module)) for one in backbone.networks)
        # weights that change have no fingerprint; float16 gradients would vanish
        precision = "float32" if backbone.precision == "float16" else backbone.precision
        self.backbone = replace(backbone, networks=networks, fingerprint="", precision=precision)
        self.bodies = nn.ModuleList(one.module for one in networks).requires_grad_(True)
        self.kept: tuple[KeptTap, ...] = tuple(kept)
        self.scaling: Scaling = scaling
        self.columns = [torch.from_numpy(one.columns).to(backbone.device) for one in self.kept]
        self.classifier = nn.Linear(*W.shape, device=backbone.device)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.from_numpy(W.T))
            self.classifier.bias.copy_(torch.from_numpy(b))
        self.eval()

    def forward(self, batch: tuple[Batch, ...]) -> Tensor:
        """Logits (n, C) float32 of a collated batch."""
        wanted = [one.pooled for one in self.kept]
        blocks = pooled(self.backbone, batch, wanted, gradients=torch.is_grad_enabled())
        inputs = [
            _scaled(blocks[tap], at, self.scaling, tap.n_means) for tap, at in zip(wanted, self.columns, strict=True)
        ]
        return self.classifier(torch.cat(inputs, dim=1))

    def logits(self, rows: list[np.ndarray]) -> np.ndarray:
        """Logits (n, C) float32 of preprocessed rows, without gradients."""
        with torch.no_grad():
            return self(self.backbone.collate(rows)).cpu().numpy()

    def tensors(self) -> dict[str, np.ndarray]:
        """All that has to be saved, by name."""
        found = {name: tensor for name, tensor in self.state_dict().items() if name not in self.unread}
        return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in found.items()}

    @property
    def n_bytes(self) -> int:
        """Bytes of its numbers on disk."""
        return sum(array.nbytes for array in self.tensors().values())

    def load_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        """Take what `tensors` gave; HeadError where it is of another architecture."""
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        try:
            missing, unexpected = self.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise HeadError(f"load: the weights do not fit {self.backbone.id}: {error}") from error
        if set(missing) != self.unread or unexpected:
            names = sorted(set(missing) ^ self.unread | set(unexpected))
            raise HeadError(f"load: the weights do not fit {self.backbone.id}, which differs in {names[:5]}")

    @cached_property
    def unread(self) -> frozenset[str]:
        """Parameters beyond the deepest kept tap, such as those of the old classifier, found by one pass."""
        finished: set[nn.Module] = set()
        with ExitStack() as hooks, torch.enable_grad():
            for part in self.modules():
                hooks.callback(part.register_forward_hook(lambda part, *_: finished.add(part)).remove)
            device = self.backbone.device
            batch = [one.feed.collate([one.feed.example()] * 2, device) for one in self.backbone.networks]
            total = self(tuple(batch)).sum()
        named = dict(self.named_parameters())
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        # a module that ran may use a weight without differentiating it
        return frozenset(
            name
            for name, gradient in zip(named, gradients, strict=True)
            if gradient is None and self.get_submodule(name.rpartition(".")[0]) not in finished
        )


@dataclass(frozen=True, eq=False)
class Network:
    """A network trained whole: what `Head` is to a frozen one, but with weights of its own for every layer.

    `backbone` is the id of the architecture. Its file is as large as the network; `preprocessing` is the backbone's.
    """

    model: Tapped
    classes: tuple[str, ...]
    metrics: Metrics
    provenance: Provenance

    @property
    def backbone(self) -> str:
        return self.model.backbone.id

    @property
    def kept(self) -> tuple[KeptTap, ...]:
        """What its linear layer reads, as in a head."""
        return self.model.kept

    @property
    def n_bytes(self) -> int:
        """Bytes of its numbers on disk."""
        return self.model.n_bytes

    def predict_logits(self, inputs: Sequence[Encoded | Path]) -> np.ndarray:
        """Logits (n, C) float32 of n inputs: image files by path, encoded bytes, pixels (H, W, 3), or texts."""
        backbone = self.model.backbone
        if not len(inputs):
            return np.zeros((0, len(self.classes)), np.float32)
        rows = (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))
        read = ([backbone.preprocess(encoded(one, backbone)) for one in batch] for batch in rows)
        return np.concatenate([self.model.logits(batch) for batch in read])

    def logits_of(self, source: Source) -> np.ndarray:
        """Logits (n, C) float32 of labelled data, decoded ahead in worker processes."""
        backbone, n = self.model.backbone, len(source)
        batches = [range(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]
        with prepared(backbone.preprocess, source, batches, workers=decoders(backbone, n)) as ready:
            return np.concatenate([self.model.logits(rows) for rows in ready])

    def predict_proba(self, inputs: Sequence[Encoded | Path]) -> np.ndarray:
        """Probabilities (n, C) float64 of n inputs, as `predict_logits` takes them."""
        return softmax(self.predict_logits(inputs))

    def predict(self, inputs: Sequence[Encoded | Path]) -> list[str]:
        """Class names of n inputs, as `predict_logits` takes them."""
        return [self.classes[i] for i in self.predict_proba(inputs).argmax(axis=1)]

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `network.safetensors`, `config.json` and the model card `README.md`; the folder appears whole."""
        tensors = columns_of(self.model.kept) | self.model.tensors()
        return write_folder(folder, "network", tensors, _config(self), model_card(self))

    @staticmethod
    def from_pretrained(folder: str | Path) -> Network:
        """Read a folder that `save_pretrained` wrote."""
        return load_network(folder)


def load_network(
    folder: str | Path, *, device: str = "cpu", backbone: Backbone | None = None, trust_remote_code: bool = False
) -> Network:
    """Read a network; runs no code from the folder. HeadError for a missing, damaged or newer file.

    The architecture is rebuilt from the backbone's id; a module of your own is given as `backbone` (and not changed).
    """
    rebuilt = partial(_rebuilt, device=device, trust_remote_code=trust_remote_code)
    return read_folder(folder, "network", partial(_from_config, backbone=backbone, rebuilt=rebuilt))


def load_model(folder: str | Path, *, device: str = "cpu", trust_remote_code: bool = False) -> Head | Network:
    """The head or the network that a folder holds; a head's backbone is loaded when it is first needed."""
    kind = read_config(Path(folder)).get("kind", "head")
    if kind == "network":
        return load_network(folder, device=device, trust_remote_code=trust_remote_code)
    return load_head(folder)


def model_card(network: Network) -> str:
    """The network's README: what it is and how good."""
    test = "none (no test split)" if network.metrics.test_accuracy is None else f"{network.metrics.test_accuracy:.4f}"
    lines = [
        "---", "library_name: head2toe", "tags: [image-classification, head2toe]", "---", "",
        f"# {network.backbone} trained whole ({network.provenance.method})", "",
        f"All weights, {len(network.classes)} classes, {network.n_bytes:,} bytes.", "",
        "| what | value |", "|---|---|",
        f"| training images | {network.metrics.n_train:,} |",
        f"| accuracy on held-out images | {network.metrics.cv_accuracy:.4f} |",
        f"| test accuracy | {test} |",
        *(f"| {name} | {value} |" for name, value in network.provenance.settings.items()),
        f"| head2toe | {network.provenance.version} |",
        "", "## Use", "", "```bash", "head2toe predict . image.jpg", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _scaled(block: Tensor, columns: Tensor, scaling: Scaling, n_means: int) -> Tensor:
    """What `table.scaled` does to a block (n, length), differentiable: (n, k)."""
    if scaling == "kept":
        return _normalised(block[:, columns], int((columns < n_means).sum()))
    return (_normalised(block, n_means) if scaling == "tap" else block)[:, columns]


def _normalised(block: Tensor, n_means: int) -> Tensor:
    means, deviations = block[:, :n_means], block[:, n_means:]
    return torch.cat((functional.normalize(means), functional.normalize(deviations)), dim=1)


def _config(network: Network) -> dict[str, object]:
    model = network.model
    return {
        "format": FORMAT,
        "kind": "network",
        "backbone": network.backbone,
        "precision": model.backbone.precision,
        "preprocessing": described(model.backbone.preprocess),
        "scaling": model.scaling,
        "classes": network.classes,
        "kept": describe_kept(model.kept),
        "metrics": asdict(network.metrics),
        "provenance": asdict(network.provenance),
    }


def _from_config(
    config: dict, tensors: dict[str, np.ndarray], *, backbone: Backbone | None, rebuilt: Callable[[dict], Backbone]
) -> Network:
    check_config(config, tensors)
    kept = kept_of(config["kept"], tensors)
    b = tensors["classifier.bias"]
    if len(config["classes"]) != len(b):
        raise HeadError(f"load: weights of {len(b)} classes do not fit {len(config['classes'])} names")
    W = np.zeros((sum(len(one.columns) for one in kept), len(b)), np.float32)
    model = Tapped(backbone or rebuilt(config), kept, config["scaling"], W, b)
    columns = columns_of(kept)
    model.load_tensors({name: array for name, array in tensors.items() if name not in columns})
    return Network(
        model.eval(), tuple(config["classes"]), Metrics(**config["metrics"]), Provenance(**config["provenance"])
    )


def _rebuilt(config: dict, *, device: str, trust_remote_code: bool) -> Backbone:
    """The backbone's architecture and preprocessing; with its weights only where the preprocessing comes with them."""
    name, wanted = config["backbone"], config["preprocessing"]
    if name.startswith("module:"):
        raise HeadError(
            f"load: {name} is a module of your own, which no id rebuilds; give it: load_network(folder, backbone=...)"
        )
    for weights in (False, True):
        found = load_backbone(
            name, precision=config["precision"], device=device, weights=weights, trust_remote_code=trust_remote_code,
            **picture_options(wanted),
        )  # fmt: skip
        if json.loads(json.dumps(described(found.preprocess))) == wanted:
            return found
    raise HeadError(f"load: {name} preprocesses its inputs in another way than when the network was trained: {wanted}")
