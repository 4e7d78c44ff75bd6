"""Peak memory of a stretch of work: what is resident of this process, and what it took of a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


def reset_peak() -> None:
    """Forget the peaks so far, where the system can: on Linux, and of a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): sets VmHWM to the present size
    except OSError:
        return


def peak_bytes() -> int:
    """The most resident memory plus the most of the GPU since `reset_peak`, or since the process began without it."""
    return _resident() + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def _resident() -> int:
    try:
        status = (_PROCESS / "status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        import sys

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
