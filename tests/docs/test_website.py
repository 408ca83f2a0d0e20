"""The website shows every page and every public module, and its links lead to pages that it has."""

from __future__ import annotations

import functools
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pages import PAGES
from scripts import ROOT, loaded


@pytest.fixture(scope="module")
def website():
    """The script, which looks at each source file once for all tests: to parse them all takes seconds."""
    with loaded("docs/website.py") as module:
        module.summary, module.modules = functools.cache(module.summary), functools.cache(module.modules)
        yield module


def public(folder, prefix: str) -> Iterator[str]:
    """The dotted names of a package's modules, as Python's import finds them."""
    yield prefix
    for found in pkgutil.iter_modules([str(folder)]):
        if not found.name.startswith("_"):
            name = f"{prefix}.{found.name}"
            yield from public(folder / found.name, name) if found.ispkg else [name]


def entries(navigation) -> Iterator[str]:
    for entry in navigation:
        for part in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [part] if isinstance(part, str) else entries(part)


def test_the_reference_has_every_public_module(website):
    expected = set(public(ROOT / "sirfp", "sirfp"))
    for project in ("segmentation", "detection", "classification"):
        expected |= set(public(ROOT / "projects" / project / project, project))
    shown = {text.partition("\n")[0] for page, text in website.reference().items() if page != "reference/index.md"}
    assert shown == {f"::: {name}" for name in expected}


def test_the_navigation_has_every_page_once(website):
    listed = list(entries(website.navigation()))
    assert len(listed) == len(set(listed))
    assert set(listed) == {*PAGES, *website.reference()}


@pytest.fixture(scope="module")
def there(website) -> set[str]:
    """The pages and pictures of the site."""
    pictures = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/images").iterdir()}
    sources = {website.source_page(target) for page in PAGES for target in website.targets(page)}
    return {*PAGES, *website.reference(), *pictures, *sources}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_of_the_site(page, website, there):
    pointed = website.pointed((ROOT / page).read_text(), page)
    for line in website.prose(pointed):
        for match in website.LINK.finditer(line):
            if not re.match(r"[a-z]+:", match[1]):
                target = (ROOT / page).parent.joinpath(match[1]).resolve().relative_to(ROOT).as_posix()
                assert target in there, f"{page}: {match[0]}"


def test_links_to_sources_and_names_of_modules_lead_to_the_reference(website):
    text = "[one](../sirfp/criteria/taylor.py#L3), [all](../sirfp/criteria), `sirfp.prune`, `taylor`, `sirfp.nothing`"
    assert website.pointed(text, "docs/page.md") == (
        "[one](../reference/sirfp/criteria/taylor.md), [all](../reference/sirfp/criteria/index.md), "
        "[`sirfp.prune`](../reference/sirfp/prune.md), `taylor`, `sirfp.nothing`"
    )


def test_other_files_and_folders_are_shown(website):
    assert website.pointed("[a](studies/real.yaml) [b](projects/criteria)", "README.md") == (
        "[a](files/studies/real.yaml.md) [b](files/projects/criteria.md)"
    )
    assert (ROOT / "studies/real.yaml").read_text() in website.source("studies/real.yaml")
    for file in (ROOT / "projects/criteria").iterdir():
        assert file.read_text() in website.source("projects/criteria")


def test_links_that_work_or_lead_nowhere_and_code_stay(website):
    code = "```python\nx['`sirfp.prune`'](sirfp)\n```\n"
    text = f"[a](budgets.md#x) [b](https://example.com) [c](missing.py) [d](#e)\n\n{code}"
    assert website.pointed(text, "docs/page.md") == text


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["[a](missing.md)", "[a](budgets.md#missing)", "[a](../sirfp/missing.py)"])
def test_a_broken_link_ends_make_docs(broken, tmp_path):
    pytest.importorskip("mkdocs", reason="installed by `make docs`")
    for name in ("README.md", "MODEL_ZOO.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "projects", "sirfp", "studies", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/method.md").open("a") as page:
        page.write(f"\n{broken}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "docs/method.md" in done.stderr and "missing" in done.stderr
