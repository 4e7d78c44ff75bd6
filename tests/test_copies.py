"""Copies of this process: what they answer, and how they end."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

from head2toe.extract.copies import can_copy, copies

# elsewhere a fork is not safe (macOS) or does not exist (Windows): extraction does without
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")


def test_copies_hold_what_the_process_holds_and_answer_side_by_side():
    weights = torch.full((3, 1), 2.0)
    with copies(lambda row: (os.getpid(), (row @ weights.numpy()).item(), torch.get_num_threads()), 2) as ask:
        asked = [ask(np.full((1, 3), i, np.float32)) for i in range(40)]
        answers = [one.result() for one in asked]
    assert [value for _, value, _ in answers] == [6.0 * i for i in range(40)]
    assert os.getpid() not in {pid for pid, _, _ in answers}
    assert {threads for _, _, threads in answers} == {1}


def test_an_exception_is_that_of_its_own_request():
    with copies(lambda n: 10 // n, 2) as ask:
        asked = [ask(n) for n in (5, 0, 2)]
        with pytest.raises(ZeroDivisionError):
            asked[1].result()
        assert (asked[0].result(), asked[2].result()) == (2, 5)


def test_ctrl_c_is_left_to_the_process_and_death_is_told():
    with copies(lambda number: os.kill(os.getpid(), number), 1) as ask:
        assert ask(signal.SIGINT).result() is None
        with pytest.raises(BrokenProcessPool):
            ask(signal.SIGKILL).result()


def test_a_process_that_may_have_no_children_is_not_copied():
    assert can_copy()
    told, tell = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=tell_whether, args=(tell,), daemon=True)
    process.start()
    assert told.recv() is False
    process.join()


def tell_whether(tell) -> None:
    tell.send(can_copy())


SCRIPT = """
import sys, time
from head2toe.extract.copies import copies
with copies(lambda seconds: time.sleep(seconds), 2) as ask:
    ask(0).result()
    waiting = [ask(600) for _ in range(2)]
    print("ready", flush=True)
    waiting[0].result()
"""


def test_copies_end_with_a_killed_process():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        # copies share its output: the end is reached when the last of them is gone
        assert process.communicate(timeout=60) == ("", None)
