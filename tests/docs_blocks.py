"""Code blocks of the pages, and what can be said of one without running it: whether commands and settings exist."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
import yaml
from stages import STAGES, settings_of

from hf_gr.arguments import parse_config
from hf_gr.cli import app
from hf_gr.errors import HfGrError


ROOT = Path(__file__).parents[1]
OWN_DATA = ROOT / "docs" / "own-data.md"  # whose commands are run from top to bottom
COMMANDS = typer.main.get_command(app)
SHOWN = {"", "text", "csv"}  # drawings, output and tables: nothing to run

_BLOCK = re.compile(r"(?:^<!-- ([^\n]+?) -->\n+)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LOOP = re.compile(r"for (\w+) in ([^;]+); do\s((?:(?!\bfor \w+ in ).)*?)\bdone", re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Block:
    """A fenced block, with the comment that stands on the line before it."""

    file: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"

    @property
    def kind(self) -> str:
        """`marked` (not run, for the reason given), `run`, `checked` against what there is, or `shown`."""
        if self.mark.startswith("not run: "):
            return "marked"
        if self.file == OWN_DATA and self.language in ("bash", "csv"):
            return "run"
        return {"python": "run", "bash": "checked", "yaml": "checked"}.get(self.language, "shown")


def blocks_of(file: Path) -> list[Block]:
    text = file.read_text()
    return [
        Block(file, text.count("\n", 0, match.start(2)) + 1, match[2], match[3], match[1] or "")
        for match in _BLOCK.finditer(text)
    ]


def commands_of(script: str) -> Iterator[list[str]]:
    """The words of every command of a shell script; of a loop, those of every turn."""
    while match := _LOOP.search(script):
        name, values, body = match.groups()
        turns = [re.sub(rf"\${name}\b|\$\{{{name}\}}", value, body) for value in shlex.split(values)]
        script = script[: match.start()] + "\n".join(turns) + script[match.end() :]
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        for parted, words in itertools.groupby(lexer, lambda word: word in (";", "&&")):
            if not parted:
                command = list(itertools.dropwhile(_ASSIGNMENT.fullmatch, words))
                if command:
                    yield command


def inline_commands(file: Path) -> list[list[str]]:
    """Commands of hf-gr in running text, which may be cut short: `hf-gr sft --from MODEL`."""
    text = _BLOCK.sub("", file.read_text())
    return [found.split()[1:] for found in re.findall(r"`(hf-gr [a-z][^`]*)`", text)]


def check(words: list[str]) -> None:
    """Raises unless a command is one that there is, with options that it has. To be called in the root."""
    program, given = words[0], words[1:]
    if program == "hf-gr":
        _check_hf_gr(given)
    elif program == "python":
        _check_script(given)
    elif program == "accelerate":
        assert given[:2] == ["launch", "--config_file"] and Path(given[2]).is_file(), words
        _check_script(given[3:])
    elif program == "make":
        _check_make(given)
    elif program == "pip":
        assert given[0] == "install", words
    else:
        assert Path(program).name == "pre-commit", f"do not know how to check {' '.join(words)}"


def check_names(words: list[str]) -> None:
    """Raises unless a command of hf-gr, perhaps cut short, has the options it names."""
    command, rest = _command(words)
    if command is None:
        return
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    if command.name in STAGES:
        known |= {f"--{entry.name}" for entry in settings_of(STAGES[command.name])} | {"--config", "--from"}
    for word in rest:
        assert not word.startswith("--") or word.split("=")[0] in known | {"--help"}, f"hf-gr {' '.join(words)}"


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and what follows; `None` for one that is awaited."""
    command, rest = COMMANDS, list(words)
    while "commands" in vars(command) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no hf-gr {rest[0]}"
        command = command.commands[rest.pop(0)]
    return command, rest


def _check_hf_gr(words: list[str]) -> None:
    command, rest = _command(words)
    if command is None:
        return
    if command.name in STAGES:
        parse_config(STAGES[command.name], ["--continue_from" if word == "--from" else word for word in rest])
    else:
        command.make_context(command.name, rest)


def _check_script(words: list[str]) -> None:
    script = Path(words[0])
    if script.parent == Path("recipes") and script.stem in STAGES:
        assert script.is_file(), script
        return _check_hf_gr([script.stem, *words[1:]])
    source = script.read_text()
    for name in re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE):
        beside = script.with_name(f"{name}.py")
        source += beside.read_text() if beside.is_file() else ""
    for word in words[1:]:
        name = word.removeprefix("--").split("=")[0]  # as an option, or as the field that an option is made of
        there = f'"--{name}"' in source or f'"{name.replace("-", "_")}"' in source
        assert there or not word.startswith("--"), f"{script} has no {word}"


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, assigned, _ = word.partition("=")
        found = rf"\$\({name}\)" if assigned else rf"^{name}:"
        assert re.search(found, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_settings(text: str, scratch: Path) -> None:
    """Raises unless a YAML text is taken by the parser of a stage that has all of its keys."""
    given = yaml.safe_load(text)
    keys = set(given)
    kinds = [kind for kind in STAGES.values() if keys <= {entry.name for entry in settings_of(kind)}]
    assert kinds, f"no stage has {', '.join(sorted(keys))}"
    scratch.write_text(text)
    refused = []
    for kind in kinds:
        needed = [
            entry.name
            for entry in settings_of(kind)
            if entry.name not in keys and entry.default is MISSING and entry.default_factory is MISSING
        ]
        try:
            parse_config(kind, ["--config", str(scratch), *(word for name in needed for word in (f"--{name}", "x"))])
            return _check_choices(kind, given)
        except (AssertionError, HfGrError) as error:
            refused.append(f"{kind}: {error}")
    raise AssertionError("\n".join(refused))


def _check_choices(kind: type | tuple[type, ...], given: dict[str, Any]) -> None:
    """The parser takes any word from a YAML file where only some are meant."""
    parts = kind if isinstance(kind, tuple) else (kind,)
    hints = {name: hint for part in parts for name, hint in get_type_hints(part).items()}
    for name, value in given.items():
        kinds = [hints[name], *get_args(hints[name])]
        choices = [choice for hint in kinds if get_origin(hint) is Literal for choice in get_args(hint)]
        assert not choices or value in choices, f"{name} is {value!r}, none of {choices}"
