"""Settings of a stage from a YAML file and the command line, by TRL's parser; what it refuses becomes one line."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

import yaml
from trl import TrlParser

from .errors import HfGrError
from .settings import read_yaml, typed, types_of


Config = TypeVar("Config")

RECIPES = Path(str(files(__package__) / "recipes"))  # DATASET/NAME.yaml
_RECIPE = re.compile(r"[\w-]+/[\w-]+")


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise HfGrError(f"{message}; --help lists the options.")


@overload
def parse_config(kind: type[Config], arguments: Sequence[str] | None = None, command: str | None = None) -> Config: ...
@overload
def parse_config(
    kind: tuple[type, ...], arguments: Sequence[str] | None = None, command: str | None = None
) -> tuple[Any, ...]: ...
def parse_config(kind: Any, arguments: Sequence[str] | None = None, command: str | None = None) -> Any:
    """A config dataclass, or several at once, from `--config FILE.yaml` and `--key value` options, which override the
    file.

    Args:
        kind: Dataclass whose fields are the options, or a tuple of dataclasses that share no field.
        arguments: Command line without the program's name; of this process if left out. `--config` is followed by a
            YAML file or by the name of a shipped recipe ([`recipe_file`]).
        command: What --help calls the program, such as `hf-gr embed`; the script of this process if left out.

    Returns:
        The config, or a tuple with one of each kind.

    Raises:
        HfGrError: On unknown options, values of the wrong type, settings that do not go together, or a YAML file that
            cannot be read.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    given = list(sys.argv[1:] if arguments is None else arguments)
    file = _config_file(given)
    parser = _Parser(kinds, prog=command)
    try:
        if file is not None:
            parser.set_defaults_with_config(**_from_file(file, kinds))
        configs = parser.parse_args_and_config(given)
    except ValueError as error:  # of the parser or of the config's own checks
        raise HfGrError(f"{' '.join(str(error).split())} (--help lists the options)") from None
    return configs if isinstance(kind, tuple) else configs[0]


def configs_of(kinds: tuple[type, ...], **settings: Any) -> tuple[Any, ...]:
    """One config of each kind from the settings of all of them, as a YAML file holds them.

    Raises [`HfGrError`] on a setting that none of them has.
    """
    names = [{item.name for item in dataclasses.fields(kind) if item.init} for kind in kinds]
    if unknown := settings.keys() - set().union(*names):
        raise HfGrError(
            f"there is no setting {min(unknown)!r}; {', '.join(kind.__name__ for kind in kinds)} list them."
        )
    return tuple(
        kind(**{name: value for name, value in settings.items() if name in own})
        for kind, own in zip(kinds, names, strict=True)
    )


def recipe_file(name: str) -> Path:
    """Finds the YAML file that `--config` names.

    Args:
        name: A file, or a recipe that ships with the package, as `DATASET/NAME`: `amazon-beauty/sft-flat`. A file of
            that name is preferred. What is neither is returned as it is.
    """
    shipped = RECIPES / f"{name}.yaml"
    return shipped if _RECIPE.fullmatch(name) and shipped.is_file() and not Path(name).is_file() else Path(name)


def _config_file(arguments: list[str]) -> str | None:
    """The file after `--config`; takes both words out of the command line."""
    if "--config" not in arguments:
        return None
    place = arguments.index("--config") + 1
    if place == len(arguments):
        raise HfGrError("--config names no file; give it a YAML file.")
    file = arguments[place]
    del arguments[place - 1 : place + 1]
    return file


def _from_file(file: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The settings in a YAML file, with their types checked; words are left to the parser, as on a command line."""
    try:
        settings = read_yaml(recipe_file(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HfGrError(
            f"{file} is not valid YAML ({' '.join(str(error).split())}); write one `key: value` a line."
        ) from None
    except OSError as error:
        known = ", ".join(sorted(folder.name for folder in RECIPES.iterdir()))
        raise HfGrError(
            f"{file} cannot be read ({error.strerror}); give --config an existing YAML file, or a recipe of the "
            f"package such as amazon-beauty/sft-flat (data sets: {known})."
        ) from None
    if not isinstance(settings, dict):
        raise HfGrError(f"{file} holds no keys and values; write one `key: value` a line.")
    types = {name: told for kind in kinds for name, told in types_of(kind).items()}
    if unknown := [key for key in settings if key not in types]:
        raise HfGrError(f"{file}: there is no setting {unknown[0]!r}; --help lists the options.")
    return {
        key: value if isinstance(value, str) else typed(f"{file}: {key}", value, types[key])
        for key, value in settings.items()
    }
