"""Tables against numbers worked out by hand, intervals against scipy's."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from head2toe.bench.costs import costs
from head2toe.bench.intervals import Interval, by_cell, interval_of_mean
from head2toe.bench.predictions import write_predictions
from head2toe.bench.result import Result, append_result, told
from head2toe.bench.tables import Entry, as_csv, markdown, tables_of, write_tables
from head2toe.data import task_from_arrays
from head2toe.errors import DataError

from .measured import results as measured

GROUP = {"flowers": "natural", "pets": "natural", "counts": "structured"}


def result(task: str, method: str, accuracy: float, **more) -> Result:
    one = Result(
        suite="packs", task=task, group=GROUP.get(task, "all"), backbone="tiny", method=method, seed=0,
        test_accuracy=accuracy, cv_accuracy=0.5, n_train=10, n_test=4, n_classes=2, n_features=8, n_kept=8,
        settings={"resize": "squash", "folds": 5},
    )  # fmt: skip
    return replace(one, **more)


RESULTS = [
    result("counts", "linear", 0.2),
    result("flowers", "linear", 0.8),
    result("pets", "linear", 0.5, seed=0),
    result("pets", "linear", 0.5, seed=1),
    result("counts", "head2toe", 0.8),
    result("flowers", "head2toe", 0.7),
    result("pets", "head2toe", 0.4, seed=0),
    result("pets", "head2toe", 0.6, seed=1),
    result("flowers", "scratch", 0.3),
    result("counts", "oracle", 0.9, upper_bound=True),
]


@pytest.fixture
def table():
    (table,) = tables_of(RESULTS)
    return table


def entries(table, name: str) -> dict[str, float]:
    (row,) = (row for row in table.rows if row.name == name)
    return {method: entry.accuracy for method, entry in row.entries.items()}


def test_tasks_stand_in_their_groups_and_methods_in_the_papers_order(table):
    assert [row.name for row in table.rows] == [
        "flowers", "pets", "counts", "mean of natural", "mean of structured", "mean of 3 tasks", "mean of 2 groups",
    ]  # fmt: skip
    assert table.methods.index("linear") < table.methods.index("head2toe")
    assert set(table.methods) == {"linear", "head2toe", "oracle", "scratch"}


def test_accuracies_are_means_over_seeds(table):
    assert entries(table, "pets") == pytest.approx({"linear": 0.5, "head2toe": 0.5})
    (pets,) = (row for row in table.rows if row.name == "pets")
    assert pets.entries["head2toe"].n_seeds == 2


def test_means_are_over_tasks_and_over_groups_of_methods_that_have_all(table):
    assert entries(table, "mean of natural") == pytest.approx({"linear": 0.65, "head2toe": 0.6})
    assert entries(table, "mean of structured") == pytest.approx({"linear": 0.2, "head2toe": 0.8, "oracle": 0.9})
    assert entries(table, "mean of 3 tasks") == pytest.approx({"linear": 0.5, "head2toe": 2.0 / 3})
    assert entries(table, "mean of 2 groups") == pytest.approx({"linear": 0.425, "head2toe": 0.7})


def test_wins_ties_and_losses_count_the_tasks_that_both_have(table):
    counted = {c.method: (c.n_tasks, c.wins, c.ties, c.losses) for c in table.comparisons}
    assert counted == {"head2toe": (3, 1, 1, 1), "oracle": (1, 1, 0, 0), "scratch": (1, 0, 0, 1)}
    (head2toe,) = (c for c in table.comparisons if c.method == "head2toe")
    assert head2toe.difference == pytest.approx(0.5 / 3)


def test_differences_are_on_the_seeds_that_both_have():
    lines = [result("pets", "linear", 0.5), result("pets", "head2toe", 0.4), result("pets", "head2toe", 0.7, seed=1)]
    (table,) = tables_of([*lines, result("pets", "oracle", 0.9, seed=2)])
    (head2toe,) = table.comparisons
    assert (head2toe.losses, head2toe.difference) == (1, pytest.approx(-0.1))
    assert "linear 1; head2toe 2; oracle 1" in markdown(table)


def test_another_reference(table):
    (again,) = tables_of(RESULTS, reference="head2toe")
    assert {c.reference for c in again.comparisons} == {"head2toe"}
    assert tables_of(RESULTS, reference="finetune")[0].comparisons == ()


def test_control_stands_beside_its_first_network():
    pair = result("pets", "control", 0.6, backbone="tiny+tiny_b")
    (table,) = tables_of([*RESULTS, pair])
    assert entries(table, "pets")["control"] == 0.6
    assert len(tables_of([*RESULTS, result("pets", "head2toe", 0.6, backbone="tiny+tiny_b")])) == 2


def test_the_page_marks_bounds_and_the_best(table):
    page = markdown(table)
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert "oracle †" in lines["task"]
    assert "† chosen on test images" in page
    assert "**80.0**" in lines["counts"]
    assert "| 90.0 |" in lines["counts"]
    assert "**90.0**" not in page
    assert lines["pets"].count("**50.0**") == 2
    assert lines["mean of 3 tasks"].count("–") == 2
    assert "resize squash" in page
    assert "folds" not in page


def sized(method: str, size: int, **more) -> Result:
    return result("pets", method, 0.5, settings={"target_sizes": "default", "target_size": size} | more)


def test_methods_that_read_other_sizes_are_named():
    mixed = [sized("linear", 64), sized("all-l2", 512), sized("oracle", 512), sized("head2toe", 4096)]
    mixed.append(replace(sized("head2toe", 512), task="counts"))
    (table,) = tables_of(mixed)
    assert "heads: all-l2, oracle 512; head2toe 512 or 4,096." in markdown(table)


@pytest.mark.parametrize("asked", ["default", "512,4096"])
def test_methods_that_choose_from_the_same_sizes_are_not(asked):
    head2toe = 512 if asked == "default" else 4096
    (table,) = tables_of([sized("all-l2", 512, target_sizes=asked), sized("head2toe", head2toe, target_sizes=asked)])
    assert "Not the same features" not in markdown(table)


def test_a_suite_with_fixed_tasks_names_those_that_are_missing():
    (table,) = tables_of([result("caltech101", "linear", 0.9, suite="vtab", group="natural")])
    assert len(table.missing) == 18
    assert table.rows[-1].name == "mean of 1 task"
    assert "Not measured, so in no mean: cifar, dtd" in markdown(table)


def test_every_entry_is_a_line_of_the_csv(table):
    rows = list(csv.DictReader(io.StringIO(as_csv([table]))))
    assert len(rows) == sum(len(row.entries) for row in table.rows)
    (line,) = (row for row in rows if (row["row"], row["name"], row["method"]) == ("task", "counts", "oracle"))
    assert (line["group"], line["upper_bound"], line["accuracy"]) == ("structured", "True", "0.9")
    assert (line["reference"], line["wins"]) == ("", "")
    (mean,) = (row for row in rows if (row["row"], row["method"]) == ("tasks", "head2toe"))
    assert [mean[name] for name in ("reference", "wins", "ties", "losses")] == ["linear", "1", "1", "1"]


def test_a_line_of_a_fit_says_what_was_chosen_on_test_images():
    assert told(result("pets", "linear", 0.5)) == "0.5000"
    assert told(result("pets", "oracle", 0.5, upper_bound=True)).startswith("0.5000 † chosen on test images")


def test_the_page_of_a_folder_tells_affinity_and_costs(tmp_path):
    append_result(tmp_path / "results.jsonl", measured())
    write_tables(tmp_path)
    page = (tmp_path / "table.md").read_text().splitlines()
    (head,) = (line for line in page if line.startswith("| task | affinity |"))
    order = [word.strip() for word in head.split("|")[3:-1]]
    assert order == ["head2toe", "oracle †", "finetune"]
    gains = {"head2toe": "+50.0", "finetune": "+60.0", "oracle †": "+70.0"}
    assert f"| far | +5.0 | {' | '.join(gains[method] for method in order)} |" in page
    assert "| finetune | 3 | 1.00e+12 (999) | 300.0 (100) | 1,000,000,000 (1) | 20,000 (200) |" in page
    assert "| head2toe | 3 | 1.00e+09 | 3.0 | 1,000,000,000 | 100 |" in page
    spent = [line.split(" | ")[0] for line in page[page.index(next(one for one in page if "Cost of" in one)) :]]
    assert [one for one in spent if one.strip("| ") in ("linear", "head2toe", "oracle †", "scratch", "finetune")] == [
        "| linear", "| head2toe", "| oracle †", "| scratch", "| finetune",
    ]  # fmt: skip


def test_of_two_results_with_one_key_the_later_counts():
    (found,) = by_cell([result("pets", "linear", 0.1), result("pets", "linear", 0.2)]).values()
    assert [r.test_accuracy for r in found] == [0.2]


@pytest.mark.parametrize("values", [np.arange(40) % 5 < 2, np.random.default_rng(1).random(12)])
def test_an_interval_is_the_percentile_bootstrap(values):
    values = values.astype(np.float64)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    got = interval_of_mean(values)
    spread = expected.high - expected.low
    assert got.low == pytest.approx(expected.low, abs=0.04 * spread)
    assert got.high == pytest.approx(expected.high, abs=0.04 * spread)


def test_an_interval_over_groups_resamples_within_each():
    constant = np.full(3, 0.2)
    varied = np.array([0.0, 1.0, 0.4, 0.9])
    both, alone = interval_of_mean(varied, constant), interval_of_mean(varied)
    assert both.low == pytest.approx((alone.low + 0.2) / 2)
    assert both.high == pytest.approx((alone.high + 0.2) / 2)
    assert interval_of_mean(varied, np.array([0.5])) is None


def test_tables_of_a_folder_have_intervals_from_its_predictions(tmp_path):
    images, labels = np.zeros((4, 4, 4, 3), np.uint8), np.array([0, 1, 0, 1])
    test = task_from_arrays(images, labels, test=(images, labels)).test
    for method, predicted in (("linear", [0, 1, 0, 1]), ("head2toe", [0, 1, 1, 1])):
        one = result("pets", method, float(np.mean(np.array(predicted) == labels)))
        write_predictions(tmp_path, one, test, np.eye(2)[predicted], ("0", "1"))
        append_result(tmp_path / "results.jsonl", [one])
    append_result(tmp_path / "results.jsonl", [result("flowers", "linear", 0.5)])
    (table,) = write_tables(tmp_path)
    flowers, pets = table.rows[:2]
    assert flowers.entries["linear"] == Entry(0.5, None, 1)
    assert pets.entries["linear"].interval == Interval(1.0, 1.0)
    assert pets.entries["head2toe"].interval == interval_of_mean(np.array([1, 1, 0, 1]))
    assert (tmp_path / "table.md").read_text().startswith("## packs, tiny")
    assert (tmp_path / "table.csv").read_text() == as_csv([table])


def test_a_folder_without_results(tmp_path):
    with pytest.raises(DataError, match="holds no results"):
        write_tables(tmp_path)


def test_a_pass_that_took_no_time_is_charged_like_any(tmp_path):
    # its images were there already, but for those to test on
    lines = [
        result("pets", "linear", 0.5, seconds={"extract": 100.0, "select": 1.0}, settings={"extracted_images": 100}),
        result("pets", "all-l2", 0.5, seconds={"extract": 0.0, "extract_test": 2.0, "select": 1.0}),
    ]
    spent = {cost.method: cost.seconds for cost in costs(lines)}
    assert spent["all-l2"] == spent["linear"] > 10


def test_a_bar_in_a_name_is_no_column(tmp_path):
    append_result(tmp_path / "results.jsonl", [result("a|b", "linear", 0.5)])
    assert "| a\\|b | **50.0** |" in markdown(write_tables(tmp_path)[0])
