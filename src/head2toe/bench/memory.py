"""Peak resident memory of a stretch of work in this process."""

from __future__ import annotations

from pathlib import Path

_PROCESS = Path("/proc/self")


def reset_peak() -> None:
    """Forget the peak so far, where the system can: on Linux."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): sets VmHWM to the present size
    except OSError:
        return


def peak_bytes() -> int:
    """The most memory that was resident since `reset_peak`, or since the process began where that cannot be reset."""
    try:
        status = (_PROCESS / "status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        import sys

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
