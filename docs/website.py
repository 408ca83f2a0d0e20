"""Chooses the pages of the website (`make docs`); a hook of MkDocs, named in mkdocs.yml.

Pages keep the paths that they have in the repository, so links between them work on GitHub and in the site as they are.
Links to source files, which GitHub shows, are pointed to pages that are made here: for a module its page in the
reference, for any other file or folder a page with its content. The reference has a page for each public module, found
by walking the packages.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README.md"  # its headings and links are the site's navigation
LINK = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?)(?=\))")
FENCED = re.compile(r"(^```.*?^```[^\S\n]*$)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<![\[`])`([a-z_]+(?:\.[a-z_0-9]+)*)`(?![\]`])")


def pages() -> list[str]:
    """The repository's pages, by their paths in it."""
    found = (path for pattern in ("*.md", "docs/**/*.md", "projects/*/README.md") for path in ROOT.glob(pattern))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def modules() -> dict[str, Path]:
    """The public modules of sirfp and of the projects' packages, {dotted name: file below the repository}."""
    found = {}
    for top in (ROOT / "sirfp", *sorted(path.parent for path in ROOT.glob("projects/*/*/__init__.py"))):
        for file in sorted(top.rglob("*.py")):
            parts = (top.name, *file.relative_to(top).with_suffix("").parts)
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(part.startswith("_") for part in parts):
                found[".".join(parts)] = file.relative_to(ROOT)
    return found


def reference_page(module: str, file: Path) -> str:
    """The page of a module in the reference."""
    return f"reference/{module.replace('.', '/')}{'/index' if file.name == '__init__.py' else ''}.md"


def summary(file: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", " ".join(text.partition("\n\n")[0].split()))[0]


def reference() -> dict[str, str]:
    """The text of each page of the reference, {page: Markdown}."""
    known = modules()
    texts = {"reference/index.md": f"# Reference\n\nEvery public module.\n\n{_listed(known, 'reference/index.md')}"}
    for name, file in known.items():
        page = reference_page(name, file)
        inside = {n: f for n, f in known.items() if n.rpartition(".")[0] == name}
        below = "\n    options: {heading_level: 2, show_root_full_path: false}"
        parts = [f"::: {name}", *(f"::: {name}.{n}.{n}{below}" for n in namesakes(file))]
        texts[page] = "\n\n".join([*parts, _listed(inside, page)] if inside else parts)
    return texts


def namesakes(file: Path) -> list[str]:
    """What a package takes from a module of the same name, as `from .prune import prune`: it hides the module."""
    if file.name != "__init__.py":
        return []
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    taken = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [alias.name for node in taken for alias in node.names if alias.name == node.module]


def _listed(modules: dict[str, Path], page: str) -> str:
    links = {name: _relative(reference_page(name, file), page) for name, file in modules.items()}
    return "\n".join(f"- [`{name}`]({links[name]}): {summary(file)}" for name, file in modules.items()) + "\n"


def source_page(path: str) -> str:
    """The page that shows a file, or the files of a folder, which is no page and no module."""
    return f"files/{path}.md"


def source(path: str) -> str:
    """The text of that page."""
    place = ROOT / path
    files = [place] if place.is_file() else sorted(file for file in place.iterdir() if file.is_file())
    kinds = {".py": "python", ".yaml": "yaml", ".sh": "sh"}
    shown = [f"# {path}"]
    for file in files:
        heading = [] if file == place else [f"## {file.name}"]
        shown += [*heading, f"````{kinds.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n````"]
    return "\n\n".join(shown) + "\n"


def targets(page: str) -> Iterator[str]:
    """What a page's relative links point to, by paths in the repository; also what is not there."""
    for line in prose((ROOT / page).read_text(encoding="utf-8")):
        for match in LINK.finditer(line):
            if not re.match(r"[a-z]+:", match[1]):
                yield _target(match[1], page)


def prose(text: str) -> Iterator[str]:
    """The lines of Markdown outside of fenced code."""
    for part in FENCED.split(text)[::2]:
        yield from part.splitlines()


def pointed(text: str, page: str) -> str:
    """A page's Markdown with links to source files, and names of modules, pointing to pages of the site."""
    known = modules()
    of_file = {file.as_posix(): reference_page(name, file) for name, file in known.items()}
    of_file |= _packages(known)
    own = set(pages())

    def link(match: re.Match) -> str:
        path = _target(match[1], page)
        if re.match(r"[a-z]+:", match[1]) or path in own or not (ROOT / path).exists() or path.startswith("docs/"):
            return match[0]
        return _relative(of_file.get(path, source_page(path)), page)

    def name(match: re.Match) -> str:
        if match[1] not in known or "." not in match[1]:
            return match[0]
        return f"[{match[0]}]({_relative(reference_page(match[1], known[match[1]]), page)})"

    parts = FENCED.split(text)  # prose at even places
    parts[::2] = [CODE.sub(name, LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)


def _packages(known: dict[str, Path]) -> dict[str, str]:
    """The pages of packages by their folders."""
    packages = {name: file for name, file in known.items() if file.name == "__init__.py"}
    return {file.parent.as_posix(): reference_page(name, file) for name, file in packages.items()}


def _target(link: str, page: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _relative(page: str, start: str) -> str:
    return posixpath.relpath(page, posixpath.dirname(start) or ".")


def navigation() -> list:
    """The site's navigation: the README, what the index of docs links under each of its headings, the reference."""
    found: list = [{"Home": "README.md"}, {"All pages": INDEX}]
    section, listed = found, {"README.md", INDEX}
    for line in prose((ROOT / INDEX).read_text(encoding="utf-8")):
        if line.startswith("## "):
            section = []
            found.append({line[3:].strip(): section})
        for match in LINK.finditer(line):
            path = _target(match[1], INDEX)
            if path.endswith(".md") and path not in listed:
                listed.add(path)
                section.append(path)
    known = modules()
    tops = dict.fromkeys(name.partition(".")[0] for name in known)
    return [*found, {"Reference": ["reference/index.md", *(_tree(top, known) for top in tops)]}]


def _tree(name: str, known: dict[str, Path]) -> dict:
    page = reference_page(name, known[name])
    inside = [_tree(n, known) for n in known if n.rpartition(".")[0] == name]
    return {name.rpartition(".")[2]: [page, *inside] if inside else page}


def on_files(files, config):
    """Replaces the files that MkDocs found in docs/ by the site's."""
    from mkdocs.structure.files import File, Files, InclusionLevel

    own, known = pages(), modules()
    places = {"src_dir": str(ROOT), "dest_dir": config.site_dir, "use_directory_urls": config.use_directory_urls}
    pictures = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs/images").iterdir())]
    chosen = [File(path, **places) for path in (*own, *pictures)]
    chosen += [File.generated(config, path, content=text) for path, text in reference().items()]
    shown = {file.as_posix() for file in known.values()} | set(_packages(known))
    for path in sorted({target for page in own for target in targets(page)}):
        if path not in {*own, *pictures} and path not in shown and (ROOT / path).exists():
            made = File.generated(config, source_page(path), content=source(path))
            made.inclusion = InclusionLevel.NOT_IN_NAV
            chosen.append(made)
    config.nav = navigation()
    return Files([*chosen, *(file for file in files if file.src_dir != config.docs_dir)])


def on_page_markdown(markdown, page, config, files):
    """Points links of the repository's pages to what shows their targets in the site."""
    return pointed(markdown, page.file.src_uri) if (ROOT / page.file.src_uri).is_file() else markdown
