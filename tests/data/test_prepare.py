import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from PIL import Image

from head2toe.data.prepare import prepared
from head2toe.data.sources import Memory
from head2toe.errors import DataError
from head2toe.images import ImagePreprocess

PREPROCESS = ImagePreprocess((4, 4), (0.5,), (0.5,))
PIXELS = np.arange(9 * 4 * 4, dtype=np.uint8).reshape(9, 4, 4)
BATCHES = [[0, 1], [2], [8, 3, 4], [5, 6], [7]]


@dataclass(frozen=True)
class Counting:
    """A source that remembers what was read."""

    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, row: int, /) -> np.ndarray:
        self.read.append(row)
        return PIXELS[row % len(PIXELS)]

    def name(self, row: int, /) -> str:
        return str(row)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whoever_prepares_them(workers):
    with prepared(PREPROCESS, Memory(PIXELS, "x"), BATCHES, workers=workers) as ready:
        got = list(ready)
    assert [len(rows) for rows in got] == [len(batch) for batch in BATCHES]
    for rows, batch in zip(got, BATCHES, strict=True):
        for row, at in zip(rows, batch, strict=True):
            assert np.array_equal(row, np.repeat(PIXELS[at][:, :, None], 3, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_few_batches_are_read_ahead(workers):
    source = Counting()
    with prepared(PREPROCESS, source, [[row] for row in range(1000)], workers=workers) as ready:
        for _ in range(10):
            next(ready)
    assert len(source.read) <= 10 + workers + 3


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_input_is_named(workers):
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG")
    source = Memory((out.getvalue(), b"junk"), "train")
    with (
        prepared(PREPROCESS, source, [[0, 1]], workers=workers) as ready,
        pytest.raises(DataError, match=r"train\[1\]: .*no known image format"),
    ):
        next(ready)


def test_a_process_that_dies_is_reported(capfd):
    with (
        prepared(partial(np.frombuffer, dtype="no such type"), Memory((b"x",), "x"), [[0]], workers=1) as ready,
        pytest.raises(DataError, match=r"exit code 1.*workers=0"),
    ):
        next(ready)
    assert "no such type" in capfd.readouterr().err


SCRIPT = """
print("script", flush=True)
import numpy as np
from head2toe.data.prepare import prepared
from head2toe.data.sources import Memory
from head2toe.images import ImagePreprocess

source = Memory(np.zeros((2, 4, 4), np.uint8), "x")
with prepared(ImagePreprocess((4, 4), (0.5,), (0.5,)), source, [[0], [1]], workers=2) as ready:
    next(ready)
    print("ready", flush=True)
    input()
"""


@pytest.fixture
def script():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["script\n", "ready\n"]
        yield process


def test_workers_do_not_run_the_main_script_again(script):
    out, err = script.communicate("go on\n", timeout=60)
    assert (out, err, script.returncode) == ("", "", 0)


def test_workers_end_with_a_killed_parent(script):
    script.send_signal(signal.SIGKILL)
    # workers share its stderr: its end is reached when the last of them is gone
    assert script.communicate(timeout=60) == ("", "")
