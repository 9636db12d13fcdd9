"""Documentation: every placement has its page and a true picture, every public name its entry, links resolve."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import propagate as pg
from propagate.checkout import folder, importable
from propagate.placement import Placement
from propagate.text import norms_on_skip

importable("docs")

from docs import check_links, diagram, generate, placement_pages, results  # noqa: E402

ROOT = folder("docs").parent
NAMES = placement_pages.names()
DRAWN = [name.lower() for name in placement_pages.gain_and_collapse()]  # in the phase diagram
SVG = "{http://www.w3.org/2000/svg}"


def flows(name: str) -> Iterator[diagram.Flow]:
    for flow in diagram.flows(name):
        diagram.place(flow)
        yield flow


def test_every_placement_of_the_package_has_a_page() -> None:
    text = (ROOT / "propagate" / "placements.py").read_text(encoding="utf-8")
    assert sorted(name.lower() for name in re.findall(r"^class (\w+)\(Placement\)", text, re.MULTILINE)) == NAMES
    index = placement_pages.index()
    for name in NAMES:
        lines = pg.equations(name).replace("; or: ", "`<br>or:<br>`").replace("; ", "`<br>`")
        row = re.escape(f"]({name}.md) | `{lines}` | {norms_on_skip(name)} |")
        told = r"[\d.e-]+ \| [\d.e-]+" if name in DRAWN else r" \| "  # one that the phase diagram has not
        assert re.search(row + rf" (19|20)\d\d \| .+ \| {told} \|", index), name
        assert f"\n{name}\n" in index


def test_a_page_has_all_its_parts(tmp_path: Path) -> None:
    page = placement_pages.page("spannorm", tmp_path)
    parts = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert parts == ["Equations", "Dataflow", "Recursion", "With depth", "Limits", "Citation"]
    for text in ("x' = N(x + FFN(N(x + Attn(x))))", "<svg", r"\begin{aligned}", "2601.22580"):
        assert text in page
    rows = json.loads(placement_pages.VERIFIED.read_text())["rows"]
    cells = [row for row in rows if row["placement"] == "spannorm"]
    assert f": {sum(row['agrees'] for row in cells)} of {len(cells)} cells (" in page
    assert "| causal mask, token by token | yes |" in page
    assert (tmp_path / "spannorm.svg").read_bytes().startswith(b"<?xml")
    table = pg.predict(pg.Model("spannorm", depth=12), covariance=0.3)
    apart = float(table.deviation[-1] / table.variance[-1])
    assert f"| 12 | none | 1 | {apart:.3g} | {float(table.grad_variance[0]):.3g} |" in page


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_every_page_can_be_made_and_its_outline_is_a_part_of_it(name: str, tmp_path: Path) -> None:
    page, outline = placement_pages.page(name, tmp_path), placement_pages.outline(name)
    headings = re.findall(r"^## .*$", outline, re.MULTILINE)
    assert headings == ["## Equations", "## Dataflow", "## Citation"]
    assert all(heading in page for heading in headings)
    assert page.startswith(outline[: outline.index("## Citation")])


def test_an_outline_does_not_pass_for_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "GENERATED", tmp_path)
    page = generate.Page("", "claims")
    page.path.write_text(generate.OUTLINE + page.outlined(), encoding="utf-8")
    assert page.stale
    page.path.write_text(page.outlined(), encoding="utf-8")
    assert not page.stale


def test_what_the_package_refuses_is_said() -> None:
    limits = "\n\n".join(placement_pages._limits("subln"))
    assert "| mixture of experts | yes |" in limits
    assert '| `include={"param_grad"}` | yes |' in limits


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_meets_the_norms_that_the_equations_count(name: str) -> None:
    """The most norms on a way along the skips, counted on the picture, and by the text's own count."""
    counted = []
    for flow in flows(name):
        streams = []
        for source, output, trunk in zip(flow.sources, flow.outputs, diagram.skips(flow), strict=True):
            most = {source: 0}
            for node in diagram.in_order([output]):
                before = [most[part] for _, part in node.parts if part in trunk and part in most]
                if node in trunk and before:
                    most[node] = max(before) + (node.kind == "Norm")
            streams.append(str(most[output]))
        counted.append(", ".join(streams))
    told = re.sub(r"\d-(\d)", r"\1", norms_on_skip(name))
    assert " or ".join(dict.fromkeys(counted)) == told


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_picture_covers_anything_else(name: str) -> None:
    for flow in flows(name):
        nodes = diagram.in_order(flow.outputs)
        cells = [(node.column, node.row) for node in nodes]
        assert len(set(cells)) == len(cells)
        for node in nodes:
            for _, part in node.parts:
                way = diagram.route(nodes, part, node)
                assert way[0] == (part.column, part.row)
                assert way[-1] == (node.column, node.row)
                for other in nodes:
                    if other not in (part, node):
                        place = (other.column, other.row)
                        assert not any(diagram._between(place, p, q) for p, q in itertools.pairwise(way))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_drawn_whole(name: str) -> None:
    for flow in flows(name):
        drawing = ElementTree.fromstring(diagram.svg(name, flow))
        boxes = sorted(box.attrib["class"] for box in drawing.iter(f"{SVG}rect"))
        assert boxes == sorted(n.kind.lower() for n in diagram.in_order(flow.outputs) if n.shape == "box")
        assert boxes.count("attention") == boxes.count("ffn") == 1
        thick = [path for path in drawing.iter(f"{SVG}path") if path.attrib.get("class") == "skip"]
        assert len(thick) >= 2 * len(flow.sources)


def test_a_placement_of_ones_own_has_a_picture() -> None:
    class DocumentedNorm(Placement):
        def block(self, x, block):  # type: ignore[no-untyped-def]
            y = block.norm(x + 2 * block.attention(x))
            return y + block.ffn(y) / 3

    (flow,) = diagram.flows(DocumentedNorm())
    drawing = diagram.svg(DocumentedNorm(), flow)
    assert drawing.count('class="norm"') == 1
    assert ">2</text>" in drawing
    assert ">0.333</text>" in drawing


def test_factors_are_short() -> None:
    found = {
        "deepnorm": "(2L)^(1/4)",
        "siamesenorm": "1/√(2l)",
        "layernormscaling": "1/√l",
        "keel": "2L",
        "ngpt": "0.05",
        "deepscalelm": "√(1 - 1/L)",
    }
    for name, text in found.items():
        assert f">{text}</text>" in diagram.svg(name, diagram.flows(name)[0])


ENTRY = re.compile(r"^\.\. auto\w+:: ([\w.]+)$", re.MULTILINE)


def entries() -> dict[str, list[str]]:
    """Everything that the pages of the interface document, and the pages that it stands on."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name in ENTRY.findall(path.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(path.stem)
    return found


def test_every_public_name_stands_on_one_page() -> None:
    documented = entries()
    assert [name for name in pg.__all__ if f"propagate.{name}" not in documented] == []
    assert {name: pages for name, pages in documented.items() if len(pages) > 1} == {}


def test_every_page_of_the_interface_is_in_its_table_of_contents() -> None:
    (listed,) = re.findall(
        r"```\{toctree\}\n([^`]*)```", (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    )
    assert ":hidden:" not in listed
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {"index"}
    assert sorted(re.findall(r"^\w+$", listed, re.MULTILINE)) == sorted(pages)
    assert pages == {page for pages in entries().values() for page in pages} - {"index"}


def test_every_committed_result_is_on_the_performance_page() -> None:
    page = results.performance()
    for path in results.RESULTS.glob("*.json"):
        assert f"[{path.name}]({results.FROM_PAGE}/{path.name})" in page
    verified = {row["placement"] for row in json.loads(placement_pages.VERIFIED.read_text())["rows"]}
    for name in verified:
        assert f"\n| {name} | " in results.agreement()
    assert "below 1e-300" in results.same_law()


def test_links_in_the_sources_lead_to_files() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "proofs" / "rendered").glob("*.md"), *(ROOT / "figures").glob("*.md")]
    pages += [*(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")]
    generated = {"agreement.md", "same_law.md", "notebooks.md", "performance.md", "placements/index.md"}
    generated |= {"claims.md", "recipes/index.md", "systems.md"}
    count = 0
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
            if "://" in link or link.removeprefix("../").removeprefix("generated/") in generated:
                continue
            count += 1
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"
    assert count > 60


def test_broken_links_of_built_pages_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there"><a href="#here"><a href="https://x.org/y">')
    (tmp_path / "b.html").write_text('<p id="there"><img src="a.html"><a href="a.html#here">')
    assert check_links.broken(tmp_path) == []
    (tmp_path / "b.html").write_text('<img src="gone.png"><a href="a.html#gone">')
    assert check_links.broken(tmp_path) == [
        "a.html: b.html#there (no such place)",
        "b.html: a.html#gone (no such place)",
        "b.html: gone.png (no such file)",
    ]
