"""What README and docstrings show is run, on a small folder of images."""

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with `flowers/`, `new-flowers/`, `new.jpg` and a store of its own."""
    folder = tmp_path_factory.mktemp("user")
    random = np.random.default_rng(0)
    for shade, label in ((60, "iris"), (180, "rose")):
        for kind, count in (("flowers", 8), ("new-flowers", 2)):
            (folder / kind / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(shade - 40, shade + 40, (48, 48, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / kind / label / f"{i}.jpg")
    (folder / "new.jpg").write_bytes((folder / "flowers" / "rose" / "0.jpg").read_bytes())
    return folder


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_commands_of_the_readme(here, monkeypatch):
    monkeypatch.setenv("HEAD2TOE_HOME", str(here / "home"))
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line, comments=True)
        assert words[0] == "head2toe"
        run = subprocess.run(
            [sys.executable, "-m", "head2toe.cli", *words[1:]], cwd=here, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{line}\n{run.stderr}"


def test_the_python_of_the_readme(here, monkeypatch):
    monkeypatch.chdir(here)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (here / "flowers-head" / "config.json").is_file()


@pytest.mark.parametrize("module", ["taps", "selection", "backbones"])
def test_docstring_examples(module):
    loaded = importlib.import_module(f"head2toe.{module}")
    taps = importlib.import_module("head2toe.taps")
    names = {"np": np, **vars(loaded), "Tap": taps.Tap, "Pool": taps.Pool}
    result = doctest.testmod(loaded, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_linked_page_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"
