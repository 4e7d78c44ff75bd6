"""What a killed training leaves behind, so that the next one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from head2toe import __version__
from head2toe.files import replacing
from head2toe.store import FeatureStore, default_location

_MODEL, _OPTIMIZER = "model.", "optimizer."
_RUNS, _SECONDS = "runs.json", "seconds.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the accuracies of the finished runs, the state of the one in hand, and the seconds spent so far.

    Files are replaced whole. No generator's state is there: every step draws from its own seed.
    """

    folder: Path
    before: float = 0.0  # seconds that processes before this one spent, up to what they last wrote
    begun: float = field(default_factory=time.perf_counter)

    def finished(self) -> dict[str, float]:
        """The held-out accuracy of every finished run."""
        return _read(self.folder / _RUNS)

    def finish(self, run: str, accuracy: float) -> None:
        """Note a finished run and forget its state."""
        _write(self.folder / _RUNS, self.finished() | {run: accuracy})
        self._note()
        self._state(run).unlink(missing_ok=True)

    def save(self, run: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state of a run that has done `step` steps."""
        state = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
        for i, parameter in enumerate(model.parameters()):
            for key, tensor in optimizer.state.get(parameter, {}).items():
                state[f"{_OPTIMIZER}{i}.{key}"] = tensor
        # clones: tied weights share memory, which the format refuses
        state = {name: one.detach().cpu().clone(memory_format=torch.contiguous_format) for name, one in state.items()}
        with replacing(self._state(run)) as new:
            save_file(state, new, {"step": str(step)})
        self._note()

    def load(self, run: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put a saved state back; how many steps it has done, 0 where there is none."""
        path = self._state(run)
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
                step = int(file.metadata()["step"])
        except SafetensorError:  # damaged: the run begins anew
            return 0
        model.load_state_dict({k.removeprefix(_MODEL): v for k, v in saved.items() if k.startswith(_MODEL)})
        parameters = list(model.parameters())
        for name, tensor in saved.items():
            if name.startswith(_OPTIMIZER):
                i, key = name.removeprefix(_OPTIMIZER).split(".")
                parameter = parameters[int(i)]
                # in the parameter's own memory format, so that the next steps round alike
                there = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
                optimizer.state[parameter][key] = there.detach().copy_(tensor)
        return step

    def remove(self) -> None:
        """Forget everything: the training has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other trainings are still there
            self.folder.parent.rmdir()

    def _state(self, run: str) -> Path:
        return self.folder / f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.safetensors"

    def _note(self) -> None:
        _write(self.folder / _SECONDS, {"spent": self.before + time.perf_counter() - self.begun})


def checkpoint_beside(store: FeatureStore | str | Path | None, what: Sequence[object]) -> Checkpoint:
    """The checkpoint of a training that `what` tells from all others: in STORE-training, or where the user caches."""
    location = store.location if isinstance(store, FeatureStore) else str(store or default_location())
    place = default_location() if "://" in location else Path(location).expanduser().absolute()
    key = hashlib.sha256(json.dumps([__version__, *map(repr, what)]).encode()).hexdigest()[:32]
    folder = place.with_name(f"{place.name}-training") / key
    return Checkpoint(folder, _read(folder / _SECONDS).get("spent", 0.0))


def _read(path: Path) -> dict[str, float]:
    """The numbers of a file; none where it is not there or damaged, so that what they spared is done again."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, numbers: dict[str, float]) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(numbers))
