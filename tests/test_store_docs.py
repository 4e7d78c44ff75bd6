"""The example of docs/store.md runs."""

import re
from pathlib import Path


def test_the_example_runs():
    text = (Path(__file__).parent.parent / "docs" / "store.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/store.md", "exec"), {})
