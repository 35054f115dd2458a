# SPDX-License-Identifier: Apache-2.0
"""The documentation does what it says: its commands run, its code compiles, its links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import pytest

from solar_corona.core.job_file import read_documents
from solar_corona.tests.docs.pages import PAGES, ROOT, Block, blocks, copy_examples, execute, is_executable, prose

_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)[^)]*\)|<img[^>]*\ssrc=\"(?P<src>[^\"]+)\"")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_each_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    for match in _LINK.finditer(prose(page)):
        target = match["target"] or match["src"]
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = unquote(target).partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{_name(page)}: {target} leads nowhere"
        if anchor and place.suffix == ".md":
            assert anchor in _anchors(place), f"{_name(page)}: {target}: there is no such heading"


@pytest.mark.parametrize("block", _blocks("python"), ids=lambda block: block.where)
def test_each_python_block_compiles(block: Block) -> None:
    compile(block.text, block.where, "exec")


@pytest.mark.parametrize("block", [b for b in _blocks("yaml") if "kind:" in b.text], ids=lambda block: block.where)
def test_each_job_file_in_a_page_parses(block: Block, tmp_path: Path) -> None:
    kinds = re.findall(r"^kind: (\w+)", block.text, flags=re.MULTILINE)
    path = tmp_path / "job.yaml"
    path.write_text(block.text, encoding="utf-8")
    assert len(read_documents(path)) == len(kinds)


@pytest.mark.parametrize("block", _blocks("bash", "sh"), ids=lambda block: block.where)
def test_each_shell_block_has_valid_syntax(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.where}: {done.stderr}"


@pytest.mark.parametrize("picture", sorted(ROOT.glob("docs/images/*.svg")), ids=_name)
def test_each_picture_is_well_formed_and_says_what_it_shows(picture: Path) -> None:
    tree = ET.parse(picture)
    names = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert "title" in names
    assert "desc" in names
    # What GitHub drops, or what would load something from elsewhere.
    assert not {"script", "foreignObject", "image"} & set(names)


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if is_executable(page)], ids=_name)
def test_each_command_of_a_page_runs_and_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    copy_examples(tmp_path)
    execute(page, tmp_path)


def test_the_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_generated_page_is_told_with_what_to_do(tmp_path: Path) -> None:
    code = (
        "import pathlib, runpy, sys\n"
        "place = runpy.run_path('scripts/generate_reference.py')\n"
        f"place['main'].__globals__['FOLDER'] = pathlib.Path({str(tmp_path)!r})\n"
        "assert place['main']([]) == 0 and place['main'](['--check']) == 0\n"
        f"pathlib.Path({str(tmp_path / 'cli.md')!r}).write_text('old')\n"
        "sys.exit(place['main'](['--check']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 page(s) of docs/reference are not what the code says; run `make docs`" in done.stderr
    assert "-old" in done.stderr


def test_the_pictures_of_similar_tasks_show_what_was_measured() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/draw_similar_tasks.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["joint-inference.md", "similar-tasks.md"])
def test_the_figures_that_pages_name_were_measured(page: str) -> None:
    row = re.compile(r"^\| *(?:`(?P<file>\w+\.json)`)? *\| (?P<figures>`\w+`(?:, `\w+`)*) \|", re.MULTILINE)
    measured: set[str] = set()
    seen = 0
    for match in row.finditer(prose(ROOT / "docs" / "explanation" / page)):
        if match["file"]:
            figures = json.loads((ROOT / "benchmarks" / "results" / match["file"]).read_text())["figures"]
            measured = {figure["name"] for figure in figures}
        named = set(re.findall(r"`(\w+)`", match["figures"]))
        assert named <= measured, f"{named - measured} are in no file of benchmarks/results"
        seen += len(named)
    assert seen > 10
