"""What a terminal shows of names that users chose."""

import io

import pytest
from rich.console import Console

from head2toe.apply import Evaluation
from head2toe.present import evaluation_table, progress


def printed(table) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["[unknown]", "[/x]", "[bold]cat"])
def test_a_class_is_shown_as_it_is_called(name):
    assert name in printed(evaluation_table(Evaluation("test", 2, 0.5, {name: (2, 0.5)})))


def test_an_evaluation_of_an_upper_bound_says_so():
    table = Evaluation("test", 2, 0.5, {"cat": (2, 0.5)}, upper_bound=True)
    assert "an upper bound" in printed(evaluation_table(table))


def test_a_bar_names_what_is_being_done():
    with progress("bench") as advance:
        advance(1, 3, "[odd] name")
        advance(3, 3)
