"""`Head`: what is saved, exported and served; it knows which columns of which taps it reads and nothing of training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, get_args

import numpy as np

from head2toe import __version__
from head2toe.errors import Head2ToeError, HeadError
from head2toe.gather import Encoded, gather
from head2toe.images import Resize
from head2toe.table import FeatureTable, Scaling, scaled
from head2toe.taps import Pool, PooledTap, Tap

if TYPE_CHECKING:
    from head2toe.backbones.core import Backbone

Precision = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")

FORMAT = 1
_TENSORS = ("head.safetensors", "network.safetensors")
_FILES = (*_TENSORS, "config.json", "README.md")
UPPER_BOUND = "upper_bound"  # the setting that marks a head chosen on test images


@dataclass(frozen=True, eq=False)
class KeptTap:
    """The columns (k,) int64 that a head reads of one pooled tap."""

    pooled: PooledTap
    columns: np.ndarray


@dataclass(frozen=True)
class Metrics:
    """Accuracies in [0, 1]; `test_accuracy` is None where there was no test split."""

    n_train: int
    cv_accuracy: float
    test_accuracy: float | None = None


@dataclass(frozen=True)
class Provenance:
    """How the head came to be: enough to fit it again."""

    method: str
    settings: dict[str, float | int | str]
    n_taps: int
    n_features: int
    version: str = __version__

    @property
    def upper_bound(self) -> bool:
        """Whether something was chosen on test images, so that the test accuracy is no estimate."""
        return UPPER_BOUND in self.settings


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer on kept features of a frozen backbone: softmax(features W + b), equation (3).

    `kept` lists the taps in order of execution; W is (k, C) float32 over their columns side by side, b is (C,).
    `scaling` is what each tap's vector goes through first (see `table.scaled`). Features are rounded to `dtype`, the
    store's, so that a prediction sees the numbers that the fit saw.
    """

    backbone: str
    fingerprint: str
    precision: Precision
    preprocessing: dict[str, object]
    dtype: str
    kept: tuple[KeptTap, ...]
    scaling: Scaling
    W: np.ndarray
    b: np.ndarray
    classes: tuple[str, ...]
    metrics: Metrics
    provenance: Provenance

    @property
    def n_kept(self) -> int:
        return self.W.shape[0]

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps that a prediction computes."""
        return tuple(dict.fromkeys(kept.pooled.name for kept in self.kept))

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(dict.fromkeys(kept.pooled.pool for kept in self.kept))

    @property
    def n_bytes(self) -> int:
        """Bytes of its numbers on disk."""
        return self.W.nbytes + self.b.nbytes + sum(kept.columns.astype(np.int32).nbytes for kept in self.kept)

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Logits (n, C) float32 of scaled kept features (n, k)."""
        return inputs @ self.W + self.b

    def logits_of(self, table: FeatureTable) -> np.ndarray:
        """Logits (n, C) float32 for the rows of a table that holds every kept tap."""
        blocks = dict(zip(table.taps, table.blocks, strict=True))
        missing = [kept.pooled.name for kept in self.kept if kept.pooled not in blocks]
        if missing:
            raise HeadError(f"predict: the table lacks the taps {missing}; read them from the store first")
        taken = [(blocks[kept.pooled], kept.columns, kept.pooled.n_means) for kept in self.kept]
        return self.logits(np.hstack([scaled(block, at, self.scaling, n_means) for block, at, n_means in taken]))

    def predict_logits(self, inputs: Sequence[Encoded | Path], backbone: Backbone) -> np.ndarray:
        """Logits (n, C) float32 of n inputs: image files by path, encoded bytes, pixels (H, W, 3), or texts.

        Raises HeadError for another backbone than the one that the head was fitted on.
        """
        check_fits(self, backbone.fingerprint, backbone.id)
        wanted = [(kept.pooled, kept.columns) for kept in self.kept]
        if not len(inputs):
            return np.zeros((0, len(self.classes)), np.float32)
        return self.logits(np.hstack(gather(backbone, inputs, wanted, self.scaling, self.dtype)))

    def predict_proba(self, inputs: Sequence[Encoded | Path], backbone: Backbone | None = None) -> np.ndarray:
        """Probabilities (n, C) float64 of n inputs, as `predict_logits` takes them."""
        return softmax(self.predict_logits(inputs, backbone or self.load_backbone()))

    def predict(self, inputs: Sequence[Encoded | Path], backbone: Backbone | None = None) -> list[str]:
        """Class names of n inputs, as `predict_logits` takes them."""
        return [self.classes[i] for i in self.predict_proba(inputs, backbone).argmax(axis=1)]

    def load_backbone(self, device: str = "cpu", *, trust_remote_code: bool = False) -> Backbone:
        """The backbone that the head was fitted on, from its id; HeadError for a module of your own, which has none."""
        from head2toe.backbones import load_backbone

        if self.backbone.startswith("module:"):
            raise HeadError(
                f"predict: {self.backbone} is a module of your own, which no id rebuilds; give backbone=..."
            )
        return load_backbone(
            self.backbone, precision=self.precision, device=device, trust_remote_code=trust_remote_code,
            **picture_options(self.preprocessing),
        )  # fmt: skip

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `head.safetensors`, `config.json` and the model card `README.md`; the folder appears whole."""
        return save(self, folder)

    @staticmethod
    def from_pretrained(folder: str | Path) -> Head:
        """Read a folder that `save_pretrained` wrote."""
        return load_head(folder)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, C) float64 of logits (n, C)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def save(head: Head, folder: str | Path) -> Path:
    """Write the head's folder whole or not at all; refuses to replace a folder that is not a head."""
    tensors = columns_of(head.kept) | {"W": np.ascontiguousarray(head.W), "b": head.b}
    return write_folder(folder, "head", tensors, _config(head), model_card(head))


def write_folder(
    folder: str | Path, name: str, tensors: Mapping[str, np.ndarray], config: dict[str, object], card: str
) -> Path:
    """Write `name`.safetensors, config.json and README.md, whole or not at all, in place of what was saved there."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    target = Path(folder).resolve()  # what a link points to is replaced, not the link
    check_target(target)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            new, old = Path(scratch) / name, Path(scratch) / "old"
            new.mkdir()
            save_file(dict(tensors), new / f"{name}.safetensors")
            (new / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            (new / "README.md").write_text(card)
            try:
                if target.exists():
                    target.rename(old)
                new.rename(target)
            except BaseException:
                if old.exists() and not target.exists():
                    old.rename(target)
                raise
    except (OSError, SafetensorError) as error:
        raise HeadError(f"save: {target} cannot be written ({error}); free space or choose another folder") from error
    return Path(folder)


def check_target(folder: Path) -> None:
    """Raise HeadError before any work where `save` would have to refuse; makes the folder that `folder` will lie in."""
    folder = folder.resolve()
    if folder == Path.cwd() or folder.is_mount():
        raise HeadError(f"save: {folder} cannot be replaced where it stands; choose a new folder within it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        raise HeadError(f"save: nothing can be written in {folder.parent} ({error}); choose another folder") from error
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    strangers = names - set(_FILES) or (names if not names & set(_TENSORS) else set())
    if strangers:
        raise HeadError(
            f"save: {folder} exists and is not a head (it holds {sorted(strangers)[0]}); choose a new folder"
        )


def load_head(folder: str | Path) -> Head:
    """Read a head; runs no code from the folder. Raises HeadError for a missing, damaged or newer file."""
    return read_folder(folder, "head", _from_config)


def read_folder(folder: str | Path, name: str, build: Callable[[dict, dict[str, np.ndarray]], T]) -> T:
    """What `build` makes of a folder's config.json and `name`.safetensors; HeadError where they cannot be used."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    config = read_config(folder)
    try:
        if config["format"] > FORMAT:
            raise HeadError(f"load: {folder} has format {config['format']}, this version reads up to {FORMAT}; upgrade")
        if (kind := config.get("kind", "head")) != name:
            raise HeadError(f"load: {folder} holds a {kind}, not a {name}; load_model reads both")
        return build(config, load_file(folder / f"{name}.safetensors"))
    except Head2ToeError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def read_config(folder: Path) -> dict:
    """A folder's config.json."""
    if not (folder / "config.json").is_file():
        raise HeadError(
            f"load: {folder} holds no config.json, so it is no head; `head2toe fit ... --out DIR` writes one"
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if not isinstance(config, dict):
        raise _damaged(folder, TypeError(f"config.json holds a {type(config).__name__}"))
    return config


def _damaged(folder: Path, error: Exception) -> HeadError:
    return HeadError(f"load: {folder} is damaged ({error}); fit the head again or restore the folder")


def check_fits(head: Head, fingerprint: str, name: str) -> None:
    """Refuse a backbone other than the one that the head was fitted on."""
    if fingerprint != head.fingerprint:
        raise HeadError(
            f"predict: the head was fitted on {head.backbone} with fingerprint {head.fingerprint[:12]}, but {name} has "
            f"{fingerprint[:12]} (other weights, preprocessing or precision); load the same backbone or fit again"
        )


def model_card(head: Head) -> str:
    """The head's README: what it is, how good, and which layers it reads."""
    test = "none (no test split)" if head.metrics.test_accuracy is None else f"{head.metrics.test_accuracy:.4f}"
    if head.provenance.upper_bound:
        test += " (an upper bound: chosen on test images)"
    lines = [
        "---", "library_name: head2toe", "tags: [image-classification, head2toe]", "---", "",
        f"# {head.provenance.method} head on {head.backbone}", "",
        f"{head.n_kept:,} of {head.provenance.n_features:,} features from {len(head.taps)} of {head.provenance.n_taps} "
        f"taps, {len(head.classes)} classes, {head.n_bytes:,} bytes.", "",
        "| what | value |", "|---|---|",
        f"| training images | {head.metrics.n_train:,} |",
        f"| cross-validated accuracy | {head.metrics.cv_accuracy:.4f} |",
        f"| test accuracy | {test} |",
        *(f"| {name} | {value} |" for name, value in head.provenance.settings.items()),
        f"| backbone fingerprint | `{head.fingerprint[:16]}` |",
        f"| head2toe | {head.provenance.version} |", "",
        "## Layers kept", "", "| tap | pooled to | kept | share of all kept |", "|---|---:|---:|---:|",
        *(
            f"| {kept.pooled.name} | {kept.pooled.length} | {count} | {count / head.n_kept:.1%} |"
            for kept, count in ((kept, len(kept.columns)) for kept in head.kept)
        ),
        "", "## Use", "", "```bash", "head2toe predict . image.jpg", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def described(preprocess: object) -> dict[str, object]:
    """The fields of a preprocessing that is a dataclass of plain values, as ours are; the name of any other."""
    if is_dataclass(preprocess) and not isinstance(preprocess, type):
        fields = asdict(preprocess)
        with suppress(TypeError):  # one holds a transform
            json.dumps(fields)
            return fields
    return {"name": getattr(preprocess, "__qualname__", type(preprocess).__qualname__)}


class PictureOptions(TypedDict):
    """What `load_backbone` is asked for, so that pictures are preprocessed alike."""

    resize: Resize
    image_size: int | None


def picture_options(preprocessing: Mapping[str, Any]) -> PictureOptions:
    """The options that lead to a preprocessing as `described` tells it.

    Several networks that differ in size have each their own.
    """
    parts = preprocessing.get("parts") or [preprocessing]
    sizes = {tuple(part["size"]) for part in parts if isinstance(part.get("size"), (list, tuple))}
    size = sizes.pop() if len(sizes) == 1 else ()
    side = size[0] if len(size) == 2 and size[0] == size[1] else None
    return {"resize": "crop" if parts[0].get("resize") == "crop" else "squash", "image_size": side}


def _config(head: Head) -> dict[str, object]:
    return {
        "format": FORMAT,
        "backbone": head.backbone,
        "fingerprint": head.fingerprint,
        "precision": head.precision,
        "preprocessing": head.preprocessing,
        "dtype": head.dtype,
        "scaling": head.scaling,
        "classes": head.classes,
        "kept": describe_kept(head.kept),
        "metrics": asdict(head.metrics),
        "provenance": asdict(head.provenance),
    }


def describe_kept(kept: Sequence[KeptTap]) -> list[dict[str, object]]:
    """The JSON of kept taps; their columns are tensors, see `columns_of`."""
    return [{"tap": asdict(one.pooled.tap), "pool": asdict(one.pooled.pool)} for one in kept]


def columns_of(kept: Sequence[KeptTap]) -> dict[str, np.ndarray]:
    """The columns of kept taps as they are saved, int32."""
    return {f"columns.{i}": one.columns.astype(np.int32) for i, one in enumerate(kept)}


def kept_of(described: Sequence[dict], tensors: Mapping[str, np.ndarray]) -> tuple[KeptTap, ...]:
    """The kept taps that `describe_kept` and `columns_of` wrote."""
    kept = []
    for i, entry in enumerate(described):
        tap = Tap(**(entry["tap"] | {"shape": tuple(entry["tap"]["shape"])}))
        pooled, columns = PooledTap(tap, Pool(**entry["pool"])), tensors[f"columns.{i}"].astype(np.int64)
        if len(columns) and not 0 <= columns.min() <= columns.max() < pooled.length:
            raise HeadError(f"load: kept columns of '{tap.name}' lie outside its {pooled.length} features")
        if (np.diff(columns) <= 0).any():
            raise HeadError(f"load: kept columns of '{tap.name}' should rise")
        kept.append(KeptTap(pooled, columns))
    return tuple(kept)


def check_config(config: dict, tensors: dict[str, np.ndarray]) -> None:
    """ValueError for values that no saved model has: they would be told late, or mean something else."""
    for name, accepted in (("scaling", get_args(Scaling)), ("precision", get_args(Precision))):
        if config[name] not in accepted:
            raise ValueError(f"{name} should be one of {', '.join(accepted)}, got {config[name]!r}")
    if not (isinstance(config["classes"], list) and all(isinstance(one, str) for one in config["classes"])):
        raise ValueError(f"classes should be a list of names, got {config['classes']!r}")
    for name, kind in (("backbone", str), ("fingerprint", str), ("preprocessing", dict)):
        if name in config and not isinstance(config[name], kind):
            raise ValueError(f"{name} should be of type {kind.__name__}, got {config[name]!r}")
    if unfinite := [name for name, one in tensors.items() if not np.isfinite(one).all()]:
        raise ValueError(f"tensor '{unfinite[0]}' holds NaN or infinite numbers")


def _from_config(config: dict, tensors: dict[str, np.ndarray]) -> Head:
    check_config(config, tensors)
    if config["dtype"] not in ("float16", "float32"):
        raise ValueError(f"dtype should be float16 or float32, got {config['dtype']!r}")
    kept = kept_of(config["kept"], tensors)
    W, b = tensors["W"], tensors["b"]
    if W.shape != (sum(len(k.columns) for k in kept), len(config["classes"])) or b.shape != W.shape[1:]:
        raise HeadError(f"load: weights {W.shape} do not fit {len(config['classes'])} classes and the kept columns")
    return Head(
        backbone=config["backbone"],
        fingerprint=config["fingerprint"],
        precision=config["precision"],
        preprocessing=config["preprocessing"],
        dtype=config["dtype"],
        kept=kept,
        scaling=config["scaling"],
        W=W,
        b=b,
        classes=tuple(config["classes"]),
        metrics=Metrics(**config["metrics"]),
        provenance=Provenance(**config["provenance"]),
    )
