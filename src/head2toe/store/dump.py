"""Read columns of a damaged Lance file in a process of its own: `python dump.py FILE OUT NUMBER=COLUMN...`.

Lance trusts the lengths in a file, so a flipped bit can make it ask for all memory or end the process. The number of
each column is printed before it is read; what can be read becomes OUT/NUMBER.npy. The caller checks the values.
"""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path


def main(file: str, out: str, columns: list[str]) -> None:
    import numpy as np

    # pyarrow imports pandas where it finds one, which takes longer than all of this; an old one it leaves alone
    sys.modules["pandas"] = types.ModuleType("pandas")
    sys.modules["pandas"].__dict__["__version__"] = "0"
    from lance.file import LanceFileReader

    _limit_memory(Path(file).stat().st_size)
    for number, column in (argument.split("=", 1) for argument in columns):
        print(number, flush=True)
        with contextlib.suppress(Exception):
            table = LanceFileReader(file, columns=[column]).read_all(batch_size=1024).to_table()
            lists = table.column(0).combine_chunks()
            values = lists.flatten().to_numpy()
            np.save(Path(out) / f"{number}.npy", values.reshape(len(lists), -1))


def _limit_memory(file_size: int) -> None:
    """Room for what is in use and a few copies of the file."""
    try:
        import resource

        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # no Linux: the system's own limit holds
        return
    limit = used + 8 * file_size + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
