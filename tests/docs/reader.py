"""Runs a page's blocks of code, one after the other, in its own folder; some commands are only parsed."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pages import Block, commands, script
from registrations import forget
from scripts import ROOT

from sirfp import cli, engine
from sirfp.config import load_config, projects, register_data
from sirfp.config.checks import validate
from sirfp.files.config_files import config_files
from sirfp.study import schema
from sirfp.training import launch

SHELL = {".", "cd", "export", "mkdir", "tar"}
"""Programs of the shell's, or of everyone's, of which only the syntax is looked at."""
OPTIONAL = {"accelerate", "lightning", "transformers"}
"""Libraries of the extra `adapters`; blocks that import one of them run where it is installed."""


class Parsed(Exception):
    """Raised when a script has read its command line, to end it there."""


class Reader:
    """One page's reader.

    Args:
        namespace: names that the page's Python code takes for granted.
        less: (pattern of a command line, words to add so that it is quick), the first that fits.
        smaller: (pattern in code, what replaces it so that the code is quick).
        not_run: patterns of command lines that are parsed and not run.
        monkeypatch: pytest's, with the current folder the reader's own.

    Attributes:
        ran: the command lines that were run.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        less: Sequence[tuple[str, str]],
        smaller: Sequence[tuple[str, str]],
        not_run: Sequence[str],
        monkeypatch: pytest.MonkeyPatch,
    ):
        self.namespace, self.less, self.smaller, self.not_run = namespace, less, smaller, not_run
        self.monkeypatch = monkeypatch
        self.variables: dict[str, str] = {}
        self.ran: list[str] = []

    def read(self, block: Block) -> None:
        """Runs a block of code, or only parses it."""
        for pattern, replacement in self.smaller:
            block = replace(block, text=re.sub(pattern, replacement, block.text))
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        if block.language == "python":
            self._python(block)
        elif block.language == "yaml":
            self._yaml(block)
        elif block.language == "sh":
            self._shell(block)

    def _python(self, block: Block) -> None:
        named = set(re.findall(r"^(?:import|from) (\w+)", block.text, re.MULTILINE))
        if any(importlib.util.find_spec(library) is None for library in named & OPTIONAL):
            return
        if block.file.startswith("sirfp/"):
            self._import_into_sirfp(block.file)
        elif "/" in block.file:
            pass  # a script or a package in a folder, which the page's commands run
        elif block.file:
            module = importlib.import_module(Path(block.file).stem)
            if block.file.startswith("test_"):
                self._test(module)
        if block.file:
            return
        code = "\n" * (block.line - 1) + block.text  # so that errors name the page's own line
        exec(compile(code, str(ROOT / block.page), "exec"), self.namespace)

    def _import_into_sirfp(self, file: str) -> None:
        """Imports a file of the reader's folder as if it lay in the package."""
        name = file.removesuffix(".py").replace("/", ".")
        assert not (ROOT / file).exists(), f"{file} is there already"
        spec = importlib.util.spec_from_file_location(name, Path(file).resolve())
        module = importlib.util.module_from_spec(spec)
        self.monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)

    def _test(self, module: ModuleType) -> None:
        """Runs a module's tests, which may take pytest's `tmp_path` and `monkeypatch`."""
        tests = [thing for name, thing in vars(module).items() if name.startswith("test_")]
        assert tests, f"{module.__name__} has no test"
        for test in tests:
            folder = Path(f"of_{test.__name__}").resolve()
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                known = {"tmp_path": folder, "monkeypatch": patch}
                test(**{name: known[name] for name in inspect.signature(test).parameters})

    def _yaml(self, block: Block) -> None:
        content = yaml.safe_load(block.text)
        path = Path(block.file or "block.yaml")
        path.write_text(block.text)
        if "tasks" in content:
            schema.read_study(path)
        elif _known(content.get("PROJECT", "")):
            validate(load_config(path))
        else:
            assert block.file, f"{block.place}: nothing runs a config of project {content['PROJECT']}"

    def _shell(self, block: Block) -> None:
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for words in commands(block.text, self.variables):
            self._command([word for word in words if word not in ("do", "done", ";")])

    def _command(self, words: list[str]) -> None:
        line = " ".join(words)
        for word in words:
            if re.match(r"(projects|benchmarks|studies)/", word):
                assert (ROOT / word).exists(), f"{line!r}: there is no {word}"
        more = shlex.split(next((more for pattern, more in self.less if re.search(pattern, line)), ""))
        run = not any(re.search(pattern, line) for pattern in self.not_run)
        if words[0] == "sirfp":
            cli.parse(words[1:])
            done = cli.main([*words[1:], *more]) if run else 0
            assert not done, f"{line!r} ended with {done}"
        elif script(words):
            self._script(words[1:], more, run)
        elif words[0] == "make":
            targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets, f"{line!r}: the Makefile has {', '.join(targets)}"
        else:
            assert words[0] in SHELL or not run, f"{line!r}: run it, or say in NOT_RUN why not"
        if run and words[0] not in SHELL:
            self.ran.append(line)

    def _script(self, words: list[str], more: list[str], run: bool) -> None:
        path = Path(words[0]).resolve()  # of the checkout where the folder only points there
        self.monkeypatch.setattr(sys, "argv", [*words, *more] if run else words)
        self.monkeypatch.syspath_prepend(str(path.parent))
        with pytest.MonkeyPatch.context() as patch:
            if not run:
                patch.setattr(engine, "run", _configured)
                patch.setattr(argparse.ArgumentParser, "parse_args", _parse)
            try:
                runpy.run_path(str(path), run_name="__main__")
                assert run, f"{path} does not read its command line"
            except Parsed:
                pass
            except SystemExit as end:
                assert not end.code, f"{' '.join(words)!r} ended with {end.code}"
            finally:
                forget(lambda kind: kind.__module__ == "__main__")


def _known(project: str) -> bool:
    """False for a project of the page's, whose configs only its own `train_net.py` can read."""
    return not project or project in projects.PROJECTS or (projects.CHECKOUT / project).is_dir()


def _parse(parser: argparse.ArgumentParser, args=None, namespace=None):
    """Parses a command line by a script's own parser, and ends the script there."""
    found, rest = parser.parse_known_args(args, namespace)
    if rest:
        parser.error(f"unknown words {rest}")
    raise Parsed


def _configured(trainer_class: type, add_config=None, argv: Sequence[str] | None = None) -> None:
    """Replaces `sirfp.engine.run`: reads the command line and checks the resulting config."""
    parser = launch.argument_parser()
    args, _ = parser.parse_known_args(argv)
    cfg = load_config(config_files(args), args.opts, add_config)
    validate(cfg)
    register_data(cfg)
    raise Parsed


def linked(folder: Path) -> None:
    """Makes a folder look like a checkout to commands that name its files, and writable all the same."""
    for name in ("projects", "benchmarks", "studies"):
        (folder / name).symlink_to(ROOT / name)
