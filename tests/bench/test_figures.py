"""What is drawn, from what, and when nothing is."""

import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from head2toe.bench import figures
from head2toe.bench.affinity import affinities, correlations
from head2toe.bench.charts import Axis, Series, _apart, colour_of, curves, quantity
from head2toe.bench.costs import cost_markdown, costs
from head2toe.bench.tables import markdown, tables_of, write_tables
from head2toe.methods.head2toe import Head2Toe

from .measured import ACCURACY, results, study, write


def words(svg: str) -> list[str]:
    """The texts of a drawing, which must be well-formed XML."""
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def test_dots_name_every_task_and_method():
    (table,) = tables_of(results())
    figure = figures.accuracy_dots(table)
    assert figure is not None
    assert {*(ACCURACY.keys() - {"oracle"}), "oracle †", "far", "near", "middle"} <= set(words(figure.svg))
    assert "far finetune" in figure.alt
    assert "oracle" not in figure.alt


def test_the_published_recipe_has_its_methods_colour_on_either_grid():
    assert colour_of("all-l2") == colour_of("paper-all-l2") == colour_of("paper-full-all-l2") != colour_of("other")


def test_affinity_tells_the_correlation():
    more = [replace(r, task=f"{r.task}2", test_accuracy=0.9 * r.test_accuracy) for r in results()]
    points = affinities([*results(), *more])
    found = correlations(points)
    figure = figures.affinity_scatter(points, found, ["oracle"])
    assert figure is not None
    (oracle,) = (c for c in found if c.method == "oracle")
    assert f"oracle †: r {oracle.pearson:+.2f}" in figure.alt
    assert figures.affinity_scatter([], []) is None


def test_a_study_shows_tasks_and_their_mean():
    lines = study("keep-fraction", "head2toe", {"far": {0.01: 0.5, 1.0: 0.6}, "near": {0.01: 0.9, 1.0: 0.8}})
    figure = figures.study_curves("keep-fraction", lines)
    assert figure is not None
    assert {"far", "near", "mean", "1 %", "100 %"} <= set(words(figure.svg))
    assert "mean from 70.0% at 0.01 to 70.0% at 1" in figure.alt


def test_a_study_of_several_series_shows_their_means_over_the_tasks_that_have_all():
    rows = {"far": {10.0: 0.2, 100.0: 0.4}, "near": {10.0: 0.4, 100.0: 0.6}, "late": {100.0: 0.9}}
    lines = [*study("n-train", "linear", rows), *study("n-train", "head2toe", {"far": {10.0: 0.3, 100.0: 0.5}})]
    figure = figures.study_curves("n-train", lines)
    assert figure is not None
    assert figure.alt == "linear from 20.0% at 10 to 40.0% at 100; head2toe from 30.0% at 10 to 50.0% at 100"
    assert figure.caption.endswith("Means over far.")  # head2toe has not been measured on the other
    assert figures.study_curves("n-train", study("n-train", "linear", {"far": {10.0: 0.2}})) is None


def test_a_study_shows_tasks_of_other_sizes_each_over_its_own_x():
    small, large = {10.0: 0.2, 100.0: 0.4}, {100.0: 0.5, 1000.0: 0.9}
    middle = {10.0: 0.3, 100.0: 0.6}
    alone = figures.study_curves("n-train", study("n-train", "head2toe", {"small": small, "large": large}))
    assert alone is not None
    assert alone.alt == "small from 20.0% at 10 to 40.0% at 100; large from 50.0% at 100 to 90.0% at 1000"
    lines = study("n-train", "head2toe", {"small": small, "large": large | {10.0: 0.1}, "middle": middle})
    lines = [*lines, *study("n-train", "linear", {"small": small, "large": large | {10.0: 0.1}})]
    both = figures.study_curves("n-train", lines)
    assert both is not None
    assert "large" in both.caption


def test_transfer_is_told_against_a_tasks_own_scores():
    lines = [
        *study("transfer", "far", {"far": {0.0: 0.7}, "near": {0.0: 0.6}}),
        *study("transfer", "near", {"far": {0.0: 0.5}, "near": {0.0: 0.8}}),
    ]
    figure = figures.transfer_heat(lines)
    assert figure is not None
    assert "-20.0 points" in figure.alt
    equal = figures.transfer_heat([*lines[:3], replace(lines[3], test_accuracy=0.6)])
    assert "-10.0 points" in equal.alt  # far's scores do as well for near as its own: that counts, too
    assert words(figure.svg).count("-20") == 2
    assert figures.transfer_heat(lines[:1]) is None


def test_criteria_are_told_against_the_default_on_the_tasks_that_they_could_judge():
    lines = [
        *study("criteria", "l2", {"far": {0.0: 0.5}, "near": {0.0: 0.9}, "late": {0.0: 0.1}}),
        *study("criteria", "elimination", {"far": {0.0: 0.7}, "near": {0.0: 0.8}}),
        *study("criteria", "chi2", {"near": {0.0: 0.83}}),
        *study("criteria", "random", {"late": {0.0: 0.2}}),
    ]
    figure = figures.criteria_heat(lines)
    assert figure is not None
    assert figure.alt == "On average against elimination: chi2 +3.0, elimination +0.0, l2 -5.0 points"
    assert {"far", "near", "-20", "+10", "+3", "chi2 +3.0"} <= set(words(figure.svg))
    assert "late" not in words(figure.svg)
    assert figures.criteria_heat(lines[:3]) is None
    assert Head2Toe.criterion == figures.REFERENCE


def test_a_heat_shows_means_over_seeds():
    lines = [*study("criteria", "l2", {"far": {0.0: 0.6}}), *study("criteria", "elimination", {"far": {0.0: 0.6}})]
    figure = figures.criteria_heat([*lines, replace(lines[0], seed=1, test_accuracy=0.8)])
    assert figure is not None
    assert "l2 +10.0" in figure.alt


def test_taps_come_in_an_order_that_every_head_agrees_with():
    order = figures.depth_order([{"stem": 1, "block2": 1}, {"block1": 1, "block2": 1, "pool": 1}, {"pool": 2}])
    assert order.index("stem") < order.index("block2") < order.index("pool")
    assert order.index("block1") < order.index("block2")
    assert sorted(figures.depth_order([{"a": 1, "b": 1}, {"b": 1, "a": 1}])) == ["a", "b"]
    code = "from head2toe.bench.figures import depth_order as d; print(d([{'stem': 1, f'b{i}': 1} for i in range(9)]))"
    orders = {
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True,
                       check=True).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(orders) == 1


def test_costs_are_ratios_over_shared_tasks():
    lines = [r for r in results() if (r.task, r.method) != ("far", "finetune")]
    dear = [replace(r, flops={"extract": 10**15}, task_bytes=10**9) if r.task == "far" else r for r in lines]
    again = [replace(r, seed=1, seconds={"select": 9.0}) for r in dear if r.method == "head2toe"]
    spent = {cost.method: cost for cost in costs([*dear, *again])}
    assert spent["head2toe"].seconds == pytest.approx(6.0)
    assert spent["finetune"].n_tasks == 2
    assert spent["finetune"].ratios["flops"] == pytest.approx(1e12 / 1.001e9)
    assert spent["finetune"].ratios["task_bytes"] == pytest.approx(200)
    assert set(spent["head2toe"].ratios.values()) == {1.0}


def test_every_method_is_charged_the_pass_at_the_speed_of_all_that_was_extracted():
    lines = [
        replace(r, seconds={"extract": 4.0, "extract_test": 2.0, "select": 1.0}, settings={"extracted_images": 300})
        if (r.task, r.method) == ("far", "head2toe")
        else replace(r, seconds={"extract": 0.1, "select": 1.0})
        if r.method in ("linear", "head2toe")
        else r
        for r in results()
    ]
    spent = {cost.method: cost for cost in costs(lines)}
    assert spent["linear"].seconds == spent["head2toe"].seconds == pytest.approx(1.0 + 100 * 6.0 / 300)
    assert spent["finetune"].seconds == pytest.approx(300.0)  # which passes its images itself
    assert "not its seconds" not in cost_markdown(list(spent.values()))
    assert "not its seconds" in cost_markdown(costs(results()))  # nothing was extracted: all of it was stored


def test_costs_without_head2toe_are_told_against_the_probe():
    spent = {cost.method: cost for cost in costs([r for r in results() if r.method != "head2toe"])}
    assert {cost.reference for cost in spent.values()} == {"linear"}
    assert spent["finetune"].ratios["task_bytes"] == pytest.approx(200)


def test_bars_are_ratios_on_the_tasks_that_both_have():
    lines = [
        replace(r, task_bytes=10**9 if r.task == "far" else 1000) if r.method == "head2toe" else r
        for r in results()
        if (r.task, r.method) != ("far", "finetune")
    ]
    figure = figures.cost_bars(costs(lines), "packs")
    assert figure is not None
    assert "20×" in words(figure.svg)  # 20,000 bytes against 1,000 on the two tasks, not against a third of 10**9


def test_layers_are_those_of_the_network_alone():
    pair = [
        replace(r, method="control", backbone="tiny+b", kept={"0:pool": 4, "1:pool": 4})
        for r in results()
        if r.method == "linear"
    ]
    figure = figures.layer_heat([*results(), *pair])
    assert figure is not None
    assert {"stem", "block1", "pool"} <= set(words(figure.svg))
    assert not {"0:pool", "1:pool"} & set(words(figure.svg))
    assert "50% where it is strongest" in figure.caption


def test_networks_are_compared_on_the_tasks_that_all_have():
    other = [replace(r, backbone="other") for r in results() if r.task == "near"]
    figure = figures.network_dots(tables_of([*results(), *other]), ["linear", "oracle"], ["oracle"])
    assert figure is not None
    assert figure.alt == "tiny: linear 81.0%, oracle † 90.0%; other: linear 81.0%, oracle † 90.0%"
    assert "oracle †" in words(figure.svg)
    assert "over the 1 tasks of all networks" in figure.caption


def test_an_upper_bound_is_marked_wherever_it_stands(tmp_path):
    sizes = {"oracle": 512}  # which the notes of a table tell
    lines = [
        replace(r, settings={"target_sizes": "default", "target_size": sizes.get(r.method, 64)})
        for r in [*results(), *(replace(r, seed=1) for r in results() if r.method == "linear")]
    ]
    write(tmp_path, lines)
    page = markdown(write_tables(tmp_path)[0])
    assert "oracle † 512" in page
    assert "oracle † 1;" in page
    write_tables(tmp_path, reference="oracle")
    points = affinities(results())
    drawn = [
        figures.accuracy_dots(tables_of(results())[0]),
        figures.affinity_scatter(points, correlations(points), ["oracle"]),
        figures.cost_bars(costs(results()), "packs", ["oracle"]),
    ]
    shown = [word for figure in drawn if figure is not None for word in words(figure.svg)]
    shown += [*(tmp_path / "table.md").read_text().splitlines(), *page.splitlines()]
    shown += [figure.alt for figure in drawn if figure is not None]
    named = [word for word in shown if "oracle" in word]
    assert len(named) > 5
    assert "| against oracle † |" in "".join(shown)
    assert all("oracle †" in word and word.count("oracle") == word.count("oracle †") for word in named)


def test_a_cost_that_was_not_measured_is_missing_and_not_zero():
    lines = [replace(r, flops={}) if r.method == "finetune" else r for r in results()]
    spent = {cost.method: cost for cost in costs(lines)}
    assert spent["finetune"].flops is None
    assert "flops" not in spent["finetune"].ratios
    assert figures.cost_bars(list(spent.values()), "packs") is not None
    assert figures.cost_bars([], "packs") is None


def test_drawings_are_the_same_twice_and_take_the_pages_colours():
    x = np.array([1.0, 2.0])
    drawn = [curves([Series("a", x, x)], Axis("x"), Axis("y")) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert "currentColor" in drawn[0]
    assert "#010203" not in drawn[0]


def test_names_that_xml_cannot_hold_are_drawn_without():
    lines = [replace(r, task=f"{r.task}\x07\x1b") for r in results()]
    figure = figures.accuracy_dots(tables_of(lines)[0])
    assert figure is not None
    ElementTree.fromstring(figure.svg)
    long = figures.accuracy_dots(tables_of([replace(r, backbone="n" * 300) for r in results()])[0])
    assert long is not None
    assert len(f"{long.name}.svg") < 200


def test_labels_keep_their_distance():
    places = np.array([0.5, 0.51, 0.5, 0.99, 1.0])
    apart = _apart(places, 0.05)
    assert np.diff(np.sort(apart)).min() >= 0.05 - 1e-12
    assert apart.max() <= 1.0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999.0, "B", "999 B"),
        (1.5e6, "B", "1.5 MB"),
        (3e15, "FLOPs", "3 PFLOPs"),
        (5000.0, "s", "5000 s"),
        (0.2, "s", "0.2 s"),
    ],
)
def test_quantities_are_readable(value, unit, text):
    assert quantity(value, unit) == text
