"""Labelled inputs: where they come from, which ids they have, and which of them cannot be read."""

from head2toe.data.arrays import task_from_arrays
from head2toe.data.load import load_task
from head2toe.data.task import Item, Source, Split, Task, damage_report, find_damaged, item_id

__all__ = [
    "Item",
    "Source",
    "Split",
    "Task",
    "damage_report",
    "find_damaged",
    "item_id",
    "load_task",
    "task_from_arrays",
]
