"""Does another engine run the bare network faster on a CPU, with equal features?

python benchmarks/faster_forward.py --backbone efficientnet_lite0 --out faster.json

Engines: torch as it is and torch.compile (inductor, weights frozen into the code), channels last, in float32 and
bfloat16; ONNX Runtime; OpenVINO in float32 and bfloat16. Needs onnx, onnxscript, onnxruntime and openvino; what is not
installed is left out. All engines take turns batch by batch on the same inputs; speed is the median. `error` is the
largest difference of the network's output from torch's in float32, relative to the largest number in it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from head2toe.backbones import load_backbone

Engine = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Row:
    engine: str
    seconds_to_build: float
    images_per_second: float
    of_eager: float
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.backbone, precision="float32")
    random = np.random.default_rng(0)
    side = backbone.preprocess(np.zeros((8, 8, 3), np.uint8)).shape
    rows = [random.integers(0, 256, side, dtype=np.uint8) for _ in range(options.batch_size)]
    (batch,) = backbone.collate(rows)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        module = backbone.networks[0].module.to(memory_format=torch.channels_last)
        x = batch.args[0].contiguous(memory_format=torch.channels_last)
        table = measure(module, x, Path(folder), options)
    print(f"{'engine':28}{'build s':>9}{'images/s':>10}{'of eager':>10}{'error':>10}")
    for row in table:
        speeds = f"{row.seconds_to_build:9.1f}{row.images_per_second:10.1f}{row.of_eager:10.2f}{row.error:10.1e}"
        print(f"{row.engine:28}{speeds}")
    if options.out:
        options.out.write_text(json.dumps({"argv": sys.argv, "rows": [asdict(row) for row in table]}, indent=1))


def measure(module: nn.Module, x: torch.Tensor, folder: Path, options: argparse.Namespace) -> list[Row]:
    """One row an engine; `of_eager` is the median over turns against torch as it is, in the same precision."""
    engines: dict[str, tuple[Engine, float, np.ndarray]] = {}
    for name, build in builders(module, x, folder, options.threads).items():
        start = time.perf_counter()
        engine = build()
        first = engine()
        engines[name] = engine, time.perf_counter() - start, first
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.turns):
        for name, (engine, _, _) in engines.items():
            start = time.perf_counter()
            engine()
            seconds[name].append(time.perf_counter() - start)
    expected = engines["torch, float32"][2]
    rows = []
    for name, (_, built, got) in engines.items():
        eager = seconds[f"torch, {name.split(', ')[1]}"]
        ratio = statistics.median(a / b for a, b in zip(eager, seconds[name], strict=True))
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        rows.append(Row(name, built, len(x) / statistics.median(seconds[name]), ratio, error))
    return rows


def builders(module: nn.Module, x: torch.Tensor, folder: Path, threads: int) -> dict[str, Callable[[], Engine]]:
    """What makes each engine that is installed."""
    path = folder / "network.onnx"
    made: dict[str, Callable[[], Engine]] = {
        "torch, float32": lambda: eager(module, x, torch.float32),
        "torch, bfloat16": lambda: eager(module, x, torch.bfloat16),
        "inductor, float32": lambda: inductor(module, x, torch.float32),
        "inductor, bfloat16": lambda: inductor(module, x, torch.bfloat16),
    }
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        return made
    torch.onnx.export(module, (x.contiguous(),), str(path), dynamo=True, verbose=False)
    if importlib.util.find_spec("onnxruntime"):
        made["onnxruntime, float32"] = lambda: onnx_runtime(path, x, threads)
    if importlib.util.find_spec("openvino"):
        made["openvino, float32"] = lambda: openvino(path, x, threads, "f32")
        made["openvino, bfloat16"] = lambda: openvino(path, x, threads, "bf16")
    return made


def eager(module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, dtype: torch.dtype) -> Engine:
    def run() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return module(x).float().numpy()

    return run


def inductor(module: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Engine:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.reset()
    return eager(torch.compile(module), x, dtype)


def onnx_runtime(path: Path, x: torch.Tensor, threads: int) -> Engine:
    onnxruntime = importlib.import_module("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: x.contiguous().numpy()}
    return lambda: np.asarray(session.run(None, fed)[0])


def openvino(path: Path, x: torch.Tensor, threads: int, precision: str) -> Engine:
    ov = importlib.import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(str(path), "CPU", settings)
    fed = x.contiguous().numpy()
    return lambda: np.asarray(compiled([fed])[0])


if __name__ == "__main__":
    main()
