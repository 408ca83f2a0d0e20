"""The command line, `sirfp`.

Exit codes: 0 success; 1 a check failed, or sirfp has a defect; 2 the user's input is wrong (one line on standard
error); 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NoReturn

from .commands.outcome import Outcome
from .errors import InputError, near, suggested
from .files.own_code import import_own
from .files.quiet import quiet_but_own
from .reporting.progress import stages_on_stderr

COMMANDS = {
    "report": "FLOPs, parameters, latency and widths of a model, dense and pruned",
    "prune": "prune a model in one shot, from a checkpoint",
    "sensitivity": "measure what a model loses if single layers get narrower, before a budget is chosen",
    "verify": "check that a pruned file equals the dense model with the removed channels zero",
    "export": "write a model, dense or pruned, as an ONNX file, and check it in onnxruntime",
    "study": "run and report a grid of tasks, models, criteria, budgets and seeds",
    "data": "make the embedded data set, or check your own",
}
"""{subcommand: its help}; each subcommand is a module of the same name in `sirfp.commands`."""


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line and suggest the nearest valid word.

    Attributes:
        details: function that returns a further part of the help. It is called only for --help, because it may import
            slow modules.
    """

    details: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.details is None:
            return super().format_help()
        text, _, example = super().format_help().rpartition(f"\n{self.epilog}")
        return f"{text}\n{self.details()}\n\n{self.epilog}{example}"

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[2])
            option = re.match(r"argument (-\S+): ", message)
            of = f" for {option[1]}" if option else ""
            message = f"there is no {choice[1]!r}{of}; known are {', '.join(known)}{near(choice[1], known)}"
        number = re.fullmatch(r"argument (-\S+): expected \d arguments", message)
        flag = number[1] if number else ""
        action = self._option_string_actions.get(flag)
        if action and isinstance(action.metavar, tuple):
            words = " ".join(action.metavar)
            message = f"{flag} takes {len(action.metavar)} values, separated by a space: {flag} {words}"
        alone = re.fullmatch(r"argument (?:\S+/)?(-\S+): expected (?:one|at least one) argument", message)
        action = self._option_string_actions.get(alone[1] if alone else "")
        if action is not None:
            values = f"a value, {action.metavar}" if action.metavar else "a value"
            if action.choices:
                values = f"one of {', '.join(map(str, action.choices))}"
            message = f"{action.option_strings[-1]} takes {values}, after a space"
        raise InputError(f"{message}; see {self.prog} --help")

    def check_rest(self, words: Sequence[str]) -> list[str]:
        """Returns the words that argparse did not use; raises InputError if one of them looks like an option."""
        flags = [option for action in self._actions for option in action.option_strings]
        for word in words:
            if word.startswith("-") and not re.match(r"-[\d.]", word):
                hint = _of_others(word.partition("=")[0], flags) or near(word.partition("=")[0], flags)
                raise InputError(f"there is no option {word}{hint or f'; see {self.prog} --help'}")
        return list(words)


OF_OTHERS = {
    "--timm": ("--model", "--arch", "--network", "--name"),
    "--config-file": ("--config", "--cfg"),
    "--weights": ("--checkpoint", "--ckpt", "--pretrained"),
    "--keep-flops": ("--sparsity", "--ratio", "--pruning-ratio", "--amount", "--budget", "--flops"),
    "--images": ("--data", "--dataset", "--calibration"),
    "--size": ("--img-size", "--image-size", "--input-size", "--resolution"),
    "--num-classes": ("--classes", "--nclasses"),
    "--output": ("--out", "--save", "--onnx"),
    "--device": ("--gpu", "--cuda", "--gpus"),
}
"""{option: what similar programs call it}."""


def _of_others(word: str, flags: Sequence[str]) -> str:
    """Suggests the option that similar programs call `word`; "" if there is none."""
    return suggested([flag for flag, names in OF_OTHERS.items() if word in names and flag in flags])


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and {subcommand: its parser}."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="sirfp",
        description="Structured pruning of Detectron2 and timm models.",
        epilog="`sirfp COMMAND --help` has the options of each and an example.",
        formatter_class=form,
        allow_abbrev=False,
    )
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    subparsers = {}
    for name, purpose in COMMANDS.items():
        module = importlib.import_module(f".commands.{name}", __package__)
        subparser = choices.add_parser(
            name,
            help=purpose,
            usage=module.USAGE,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            epilog=module.EXAMPLE,
            formatter_class=form,
            allow_abbrev=False,
        )
        module.add(subparser)
        subparser.details = getattr(module, "details", None)
        if name != "data":  # the subcommands of `data` have this option
            subparser.add_argument("--json", action="store_true", help="print one JSON object")
        subparsers[name] = subparser
    return parser, subparsers


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        InputError: a word is unknown, or a required word is missing.
    """
    parser, subparsers = build_parser()
    args, rest = parser.parse_known_args(argv)
    rest = subparsers[args.command].check_rest(rest)
    if rest and not hasattr(args, "words"):
        raise InputError(f"{rest[0]!r} is not understood; see sirfp {args.command} --help")
    if rest:
        args.words = [*args.words, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code. Without a word it prints the help."""
    if not (sys.argv[1:] if argv is None else argv):
        build_parser()[0].print_help()
        return 0
    try:
        args = parse(argv)
        with nullcontext() if args.json else stages_on_stderr(), quiet_but_own():
            for code in getattr(args, "imports", ()):
                import_own(code)
            outcome = importlib.import_module(f".commands.{args.command}", __package__).run(args)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    try:
        _print(outcome, args.json)
    except BrokenPipeError:  # the reader, e.g. `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if outcome.failure:
        print(f"error: {outcome.failure}", file=sys.stderr)
        return 1
    return 0


def _print(outcome: Outcome, as_json: bool) -> None:
    """Prints the data as one JSON object, or as text and tables, 140 columns wide unless the output is a terminal."""
    if as_json:
        print(json.dumps(outcome.data), flush=True)
        return
    from rich.console import Console

    from .reporting.tables import Table

    class Piped(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program
            raise BrokenPipeError

    console = Piped(highlight=False, width=None if sys.stdout.isatty() else 140)
    for part in outcome.output:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part.rich(numbers="why" not in part.columns) if isinstance(part, Table) else part)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
