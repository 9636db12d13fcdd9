"""The index of the figures is made from their captions, and is the committed one."""

from pathlib import Path

import xarray as xr

from propagate import figure_index, figures

FOLDER = figures.ROOT / "figures"


def test_the_committed_index_is_todays(tmp_path: Path) -> None:
    for path in FOLDER.glob("*.md"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    written = figure_index.write(tmp_path)
    assert written.read_bytes() == (FOLDER / "README.md").read_bytes(), "run: propagate figures validity --to figures"


def test_every_figure_has_a_thumbnail_a_link_and_words() -> None:
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    for name in figures.names():
        (row,) = (line for line in lines if f"]({name}.md)" in line)
        assert f'src="{name}.png"' in row
        assert (FOLDER / f"{name}.png").is_file()
        title = row.split("|")[2].strip()
        assert title.startswith("**")
        assert title.endswith(".")
        assert len(title) > 40


def test_claims_are_worded_once_and_a_new_caption_changes_the_page() -> None:
    one = "**One.** What it is.\n\nBears on claim C2 (two words). It does not hold. More. Even more."
    other = "**Other.** It is.\n\nBears on claims C2 (other words) and C1 (first)."
    page = figure_index.page({"one": one, "other": other})
    assert "- C1: first.\n- C2: two words.\n" in page
    assert "other words" not in page
    assert "It does not hold. More. |" in page
    assert figure_index.page({"one": one}) != page


def test_every_committed_caption_is_what_its_script_makes_of_the_stored_data() -> None:
    for name in figures.names():
        with xr.open_dataset(FOLDER / f"{name}.nc", engine="scipy") as data:
            made = figures.caption_of(name, figures.load(name), data)
            assert (FOLDER / f"{name}.md").read_text(encoding="utf-8") == made, name
            assert figures.caption_of("another", figures.load(name), data) != made
