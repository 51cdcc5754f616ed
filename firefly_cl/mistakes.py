"""What is wrong with a command line that cannot be parsed, in one line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from firefly_cl.registry import nearest, suggestion
from firefly_cl.settings import WANTED

_POSITIONAL = get_args(tyro.conf.Positional[str])[1]
_MORE = "(firefly-cl --help shows all)"


def mistake(arguments: Sequence[str], box: str, commands: Mapping[str, Callable[..., Any]]) -> str:
    """The mistake in `arguments`, and what may have been meant.

    box: what tyro says of them, in a frame. commands: the dataclass of each.
    """
    said = _first_paragraph(box)
    command = arguments[0] if arguments else ""
    if command not in commands and command[:1] not in ("", "-"):
        return f"unknown command {command!r}: {suggestion(command, commands)} {_MORE}"
    options = {name: _options(kind) for name, kind in commands.items()}
    if missing := re.match(r"Missing value for argument '(--[\w-]+)'", said):
        return f"{missing[1]} needs a value"
    if missing := re.match(r"Missing from firefly-cl (\w+): (\S+)", said):
        return f"{missing[1]} needs {missing[2]}"
    wrong = re.match(r"Error parsing (--[\w-]+):", said)
    if wrong and (wanted := _wanted(options.get(command, {}).get(wrong[1]))):
        return f"{wrong[1]} is {_value(arguments, wrong[1])!r}: give {wanted}"
    if said.startswith("Unrecognized"):
        known = {**options.get(command, {}), "--help": None, "-h": None}
        given = (word.partition("=")[0] for word in arguments if re.match("--?[A-Za-z]", word))
        unknown = [option for option in given if _spelt(option) not in known]
        if unknown:
            return _unknown_option(unknown[0], command, options)
    return f"{said} {_MORE}"


def _unknown_option(option: str, command: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    owners = [name for name, known in options.items() if _spelt(option) in known]
    if command not in options:
        near = nearest(option.lstrip("-"), ["version", "help"])
        if owners:
            return f"{option} comes after the command, as in firefly-cl {owners[0]} {option}"
        return f"firefly-cl has no {option}" + (
            f": did you mean --{near}?" if near else f" {_MORE}"
        )
    text = f"{command} has no {option}"
    if owners:
        listed = " and ".join(filter(None, [", ".join(owners[:-1]), owners[-1]]))
        return f"{text} ({listed} {'has' if len(owners) == 1 else 'have'} it)"
    near = nearest(_spelt(option).lstrip("-"), [name[2:] for name in options[command]])
    if near:
        return f"{text}: did you mean --{near}?"
    return f"{text} (firefly-cl {command} --help shows what it has)"


def _first_paragraph(box: str) -> str:
    """The lines in a frame up to the first blank one or rule, as one, without a full stop."""
    lines = [line.strip("│| ") for line in box.splitlines()[1:]]
    lines = [line if line.strip("─-+╭╮╰╯") else "" for line in lines]
    begun = itertools.dropwhile(lambda line: not line, lines)
    return " ".join(itertools.takewhile(bool, begun)).rstrip(".")


def _options(kind: Callable[..., Any]) -> dict[str, Any]:
    """The options of a command with their types, annotated as in the dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        _spelt(f"--{name}"): hint
        for name, hint in hints.items()
        if _POSITIONAL not in get_args(hint)
    }


def _wanted(hint: Any) -> str | None:
    """What a value of that type is called, if it is a number."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kinds = [kind for kind in (int, float) if kind is plain or kind in get_args(plain)]
    return WANTED[kinds[0]] if kinds else None


def _value(arguments: Sequence[str], option: str) -> str:
    """What was given for an option, the last time that it was given."""
    value = ""
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, inside = word.partition("=")
        if _spelt(name) == option:
            value = inside if equals else following
    return value


def _spelt(option: str) -> str:
    return option.replace("_", "-")
