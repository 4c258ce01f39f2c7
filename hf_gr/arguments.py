"""Settings of a station from a YAML file and the command line, by TRL's parser; what it refuses becomes one line."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import yaml
from trl import TrlParser

from .errors import HfGrError


Config = TypeVar("Config")


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise HfGrError(f"{message}; --help lists the options.")


def parse_config(kind: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """A config dataclass from `--config FILE.yaml` and `--key value` options, which override the file.

    Args:
        kind: Dataclass whose fields are the options.
        arguments: Command line without the program's name; of this process if left out.

    Raises:
        HfGrError: On unknown options, values of the wrong type, settings that do not go together, or a YAML file that
            cannot be read.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    file = _config_file(given)
    try:
        return _Parser((kind,)).parse_args_and_config(given)[0]
    except yaml.YAMLError as error:
        raise HfGrError(
            f"{file} is not valid YAML ({' '.join(str(error).split())}); write one `key: value` a line."
        ) from None
    except OSError as error:
        raise HfGrError(f"{file} cannot be read ({error.strerror}); give --config an existing YAML file.") from None
    except ValueError as error:  # of the parser or of the config's own checks
        raise HfGrError(f"{' '.join(str(error).split())} (--help lists the options)") from None


def _config_file(arguments: list[str]) -> str | None:
    if "--config" not in arguments:
        return None
    place = arguments.index("--config") + 1
    if place == len(arguments):
        raise HfGrError("--config names no file; give it a YAML file.")
    return arguments[place]


def mapping(name: str, text: str) -> dict[str, Any]:
    """A setting that is a mapping, from the words of a command line: `{key: 1, other: 2}` as YAML or JSON.

    Raises:
        HfGrError: If it is not one.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise HfGrError(f"{name} is {text!r}; give keys and values, such as {{key: 1, other: 2}}.")
    return found
