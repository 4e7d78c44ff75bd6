"""The page as a browser sees it: it needs nothing else, it speaks, and its tables hold the results' numbers."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from head2toe.bench.report import page_of, render, write_report
from head2toe.bench.result import slug
from head2toe.bench.tables import write_tables
from head2toe.errors import DataError, MissingExtraError

from .measured import ACCURACY, results, study, write

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Parsed(HTMLParser):
    """Elements with their attributes, tables as rows of words, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.path: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.path.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.path.pop() == tag

    def handle_data(self, data):
        if "td" in self.path[-3:] or "th" in self.path[-3:]:
            self.tables[-1][-1][-1] += data.strip() + (" " if "small" in self.path else "")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def filled(folder):
    """A folder as a benchmark, a study and the runner's mistakes leave it."""
    measured = results()
    write(folder, measured)
    write(folder, study("keep-fraction", "head2toe", {"far": {0.01: 0.5, 1.0: 0.6}}), "studies/keep-fraction.jsonl")
    mistakes = [{"name": "7.png", "label": "<b>cat", "predicted": "dog", "probability": 0.9, "thumbnail": "AAAA"}]
    (folder / "mistakes").mkdir()
    wrong = next(r for r in measured if (r.task, r.method) == ("near", "head2toe"))
    (folder / "mistakes" / f"{slug(wrong)}.json").write_text(json.dumps(mistakes))
    return folder


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = filled(tmp_path_factory.mktemp("results"))
    return Parsed(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not page.all("link")
    assert all(not script for script in page.all("script"))


def test_every_tag_is_closed_and_every_id_is_its_own(page):
    assert page.path == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_picture_is_told_in_words(page):
    drawings = [attributes for attributes in page.all("div") if attributes.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == 5
    assert all(len(drawing["aria-label"] or "") > 30 for drawing in drawings)
    assert [image["alt"] for image in page.all("img")] == ["7.png: labelled <b>cat, predicted dog"]


def test_the_table_holds_the_results(page):
    header, *rows = page.tables[0]
    accuracies = {row[0]: dict(zip(header[2:], row[2:], strict=True)) for row in rows}
    for method, of in ACCURACY.items():
        shown = "oracle †" if method == "oracle" else method
        for task, accuracy in of.items():
            assert accuracies[task][shown] == f"{100 * accuracy:.1f}"
    assert accuracies["mean of 3 tasks"]["head2toe"].startswith("71.8")
    assert accuracies["mean of 2 groups"]["head2toe"].startswith(f"{50 * (0.83 + (0.7 + 0.625) / 2):.1f}")


def test_the_best_is_bold_and_never_an_upper_bound(page):
    marks = [attributes for attributes in page.all("td") if attributes.get("class")]
    best = [float(m["data-value"] or 0) for m in marks if m["class"] == "best"]
    assert best[:3] == [0.83, 0.8, 0.625]
    assert [float(m["data-value"] or 0) for m in marks if m["class"] == "bound"][:3] == [0.9, 0.9, 0.9]


def test_headings_go_down_one_step_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 2 for before, after in pairwise(levels))


def test_the_command_measures_the_same_again(folder):
    (command,) = (line for line in page_of(folder).origin.commands if " bench " in line)
    assert "--methods linear,head2toe,finetune,scratch,oracle --groups GROUPS" in command


def test_no_command_measures_more_than_was_measured(tmp_path):
    write(tmp_path, [r for r in results() if (r.task, r.method) != ("far", "oracle")])
    all_tasks, two_tasks = page_of(tmp_path).origin.commands
    assert "--methods linear,head2toe,finetune,scratch " in all_tasks
    assert "--tasks far,near,middle " in all_tasks
    assert "--methods oracle " in two_tasks
    assert "--tasks near,middle " in two_tasks


def test_tasks_measured_on_other_seeds_have_a_command_of_their_own(tmp_path):
    probe = [r for r in results() if r.method == "linear"]
    write(tmp_path, [*probe, *(replace(r, seed=1) for r in probe if r.task == "far")])
    both, one = page_of(tmp_path).origin.commands
    assert "--tasks far --seeds 0,1 " in both
    assert "--tasks near,middle --seeds 0 " in one


def test_a_fit_that_two_processes_made_counts_once(tmp_path):
    lines = results()
    again = [replace(r, test_accuracy=0.5, flops={"extract": 10**12}) for r in lines if r.method == "head2toe"]
    write(tmp_path, [*lines, *again])
    page = page_of(tmp_path)
    (chapter,) = page.chapters
    assert page.origin.n_results == len(lines)
    assert len(chapter.layers) == 3
    assert {cost.method: cost.flops for cost in chapter.costs}["head2toe"] == 10**12


def test_names_that_are_no_utf_8_are_written(tmp_path):
    # a file's name can be any bytes; Python gives those that are no UTF-8 as surrogates
    write(tmp_path, [replace(r, task=f"caf\udce9 {r.task}") for r in results()])
    assert "caf\\udce9" in write_report(tmp_path).read_text()
    write_tables(tmp_path)
    assert "caf\\udce9 far" in (tmp_path / "table.md").read_text()


def test_methods_measured_with_other_seeds_have_their_layers(tmp_path):
    write(tmp_path, [replace(r, seed=int(r.method == "head2toe")) for r in results()])
    (chapter,) = page_of(tmp_path).chapters
    assert [one.task for one in chapter.layers] == ["far", "near", "middle"]
    assert chapter.layer_figure is not None


def test_a_head_without_mistakes_is_not_given_anothers(folder):
    right, wrong = (next(r for r in results() if (r.task, r.method) == ("far", m)) for m in ("head2toe", "linear"))
    text = (folder / "mistakes" / f"{slug(replace(right, task='near'))}.json").read_text()
    (folder / "mistakes" / f"{slug(right)}.json").write_text("[]")
    (folder / "mistakes" / f"{slug(wrong)}.json").write_text(text)
    assert [(one.task, one.method) for one in page_of(folder).chapters[0].wrong] == [("near", "head2toe")]


def test_a_page_cannot_be_a_folder(folder):
    with pytest.raises(DataError, match="should be a file"):
        write_report(folder, folder)


def test_the_commands_repeat_the_conditions_and_keep_networks_apart(tmp_path):
    measured = {"target_sizes": "64,512", "max_test": 20, "precision": "float32", "backbone_id": "file:WEIGHTS/t"}
    fair = [one for one in results() if one.method in ("linear", "finetune")]
    lines = [replace(one, settings=one.settings | measured) for one in fair]
    other = replace(lines[0], backbone="tiny+b", method="control", settings=lines[0].settings | {"backbone_id": "a+b"})
    trained = [replace(one, method="scratch", settings=one.settings | {"tried_lrs": "0.01,0.001"}) for one in lines[:1]]
    write(tmp_path, [*lines, other, *trained])
    first, second, third = page_of(tmp_path).origin.commands
    tasks, task = (
        f"--groups GROUPS --tasks {of}" for of in (",".join(dict.fromkeys(one.task for one in lines)), other.task)
    )
    end = "--target-size 64 --target-size 512 --max-test 20 --precision float32"
    start = "head2toe bench packs --root ROOT --backbones"
    assert first == f"{start} file:WEIGHTS/t --methods linear,finetune {tasks} --seeds 0 {end} --out OUT"
    assert second == f"{start} a+b --methods control {task} --seeds 0 {end} --out OUT"
    assert third == (f"{start} file:WEIGHTS/t --methods scratch {task} --seeds 0 {end} --lr 0.01 --lr 0.001 --out OUT")


def test_versions_are_told(tmp_path):
    write(tmp_path, [replace(one, packages={"torch": "2.9.0", "python": "3.12.1"}) for one in results()])
    assert page_of(tmp_path).origin.packages == ("python 3.12.1", "torch 2.9.0")
    assert "python 3.12.1, torch 2.9.0" in write_report(tmp_path).read_text()


def test_every_figure_is_also_a_drawing_of_its_own(folder):
    write(folder, [replace(one, suite="vtab") for one in results()])
    page = write_report(folder)
    drawn = {path.stem: ElementTree.parse(path).getroot() for path in (folder / "figures").iterdir()}
    assert {element["id"] for element in Parsed(page.read_text()).all("figure")} == set(drawn)
    assert len(drawn) == 4 + 4 + 1
    assert {root.tag for root in drawn.values()} == {"{http://www.w3.org/2000/svg}svg"}


def test_figures_go_where_they_are_asked_for(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    page = write_report(folder, elsewhere / "page.html", elsewhere / "drawings")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["drawings", "page.html"]
    assert len(list((elsewhere / "drawings").iterdir())) == len(Parsed(page.read_text()).all("svg"))
    assert not (folder / "figures").exists()


def test_several_networks_stand_beside_each_other_first(folder):
    other = [replace(one, backbone="other", test_accuracy=0.5) for one in results() if one.method != "scratch"]
    write(folder, [one for one in other if (one.task, one.method) != ("far", "finetune")])
    (overview,) = page_of(folder).overviews
    page = Parsed(render(page_of(folder)))
    header, tiny, second = page.tables[0]
    assert header == ["network", "tasks", "linear", "head2toe", "oracle †", "scratch", "finetune"]
    assert tiny == ["tiny", "3", "50.3", "71.8", "90.0", "25.0", "74.0"]
    assert second == ["other", "3", "50.0", "50.0", "50.0", "–", "–"]  # no mean over two of three tasks
    assert page.all("figure")[0]["id"] == overview.figure.name


def test_methods_are_told_against_another_reference(folder):
    (found,) = [
        rows for rows in Parsed(write_report(folder, reference="finetune").read_text()).tables if "wins" in rows[0]
    ]
    gains = {row[0]: row[2] for row in found[1:]}
    assert gains["head2toe"] == "-2.2"  # 71.8 and 74.0
    assert "finetune" not in gains


def test_what_was_not_measured_leaves_no_section(tmp_path):
    write(tmp_path, [one for one in results() if one.method == "oracle"])
    page = page_of(tmp_path)
    assert (page.figures, page.overviews, page.studies) == ((), (), ())
    text = render(page)
    for heading in ("Domain affinity", "Which layers", "Costs", "Surest mistakes", "Studies", "all networks"):
        assert heading not in text


def test_names_of_users_are_text(folder):
    hostile = results()[0].__class__(**{**vars(results()[0]), "task": "<script>x</script>"})
    write(folder, [hostile])
    assert "<script>x" not in render(page_of(folder))


def test_a_dollar_is_no_formula(tmp_path):
    names = {"far": "$\\frac$", "near": "us$ to eu$", "middle": "a b;c"}
    write(tmp_path, [replace(one, task=names[one.task]) for one in results()])
    text = render(page_of(tmp_path))
    assert "us$ to eu$" in text
    assert "--tasks &#39;" in text


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="head2toe bench"):
        write_report(tmp_path)


def test_damaged_mistakes_are_named(folder):
    (path,) = (folder / "mistakes").iterdir()
    path.write_text('[{"name": 1')
    with pytest.raises(DataError, match="near--tiny--head2toe"):
        page_of(folder)


def test_without_jinja_the_extra_is_named(folder, monkeypatch):
    page = page_of(folder)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"head2toe\[report\]"):
        render(page)


def test_networks_whose_names_are_alike_have_drawings_of_their_own(tmp_path):
    named = [replace(one, backbone=name) for name in ("a/b", "a_b") for one in results()]
    write(tmp_path, named)
    page = write_report(tmp_path)
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    parsed = Parsed(page.read_text())
    assert "accuracy-packs-a_b" in drawn
    assert len(drawn) == len(parsed.all("svg"))
    assert sorted(figure["id"] for figure in parsed.all("figure")) == sorted(drawn)
