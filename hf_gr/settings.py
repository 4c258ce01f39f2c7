"""Settings within settings: a mapping of a YAML file, of a command line or of a program, with its types checked."""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from .errors import HfGrError


Config = TypeVar("Config")

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word", NoneType: "null"}


class _Yaml(yaml.SafeLoader):
    """YAML as its version 1.2 reads it: 1e-3 is a number, and `no` and `off` are words."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """What a YAML text holds. Raises `yaml.YAMLError` where it is none."""
    return yaml.load(text, _Yaml)


def mapping(name: str, text: str) -> dict[str, Any]:
    """A setting that is a mapping, from the words of a command line: `{key: 1, other: 2}` as YAML or JSON.

    Raises:
        HfGrError: If it is not one.
    """
    try:
        found = read_yaml(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise HfGrError(f"{name} is {text!r}; give keys and values, such as {{key: 1, other: 2}}.")
    return found


def nested(kind: type[Config], settings: Mapping[str, Any], name: str) -> Config:
    """A dataclass from a mapping, as a YAML file or a program has it.

    Args:
        kind: The dataclass; its own checks say which values are in range.
        settings: Keys and values.
        name: What messages call the mapping, such as `thinking`.

    Raises:
        HfGrError: On a key that the dataclass does not have, a missing one, or a value of another type.
    """
    return kind(**checked(settings, types_of(kind), name))


def checked(settings: Mapping[str, Any], types: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of a mapping as the annotations of its keys say; raises [`HfGrError`] on other keys and types."""
    if not isinstance(settings, Mapping):
        raise HfGrError(f"{name} is {settings!r}; give keys and values, such as {{key: 1, other: 2}}.")
    if unknown := [key for key in settings if key not in types]:
        raise HfGrError(f"{name} has no key {unknown[0]!r}; it may have {', '.join(types)}.")
    return {key: typed(f"{name}.{key}", value, types[key]) for key, value in settings.items()}


def typed(name: str, value: Any, kind: Any) -> Any:
    """A value as its annotation says it: whole where a whole number is wanted (1e3 is one), a tuple for a list.

    Args:
        name: What messages call it.
        value: As YAML, JSON or a program has it.
        kind: Annotation of a dataclass's field.

    Raises:
        HfGrError: If it is of another type, or no finite number.
    """
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in options:
        fits, found = _as(value, option)
        if fits:
            return found
    raise HfGrError(f"{name} is {value!r}; give {' or '.join(map(_told, options))}.")


def _as(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether a value is of a kind, and what it is there."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts), value
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False, value
        inner = parts[0] if parts else Any
        members = [_as(member, inner) for member in value]
        return all(fits for fits, _ in members), origin(member for _, member in members)
    if origin is int:
        whole = type(value) is int or (type(value) is float and value.is_integer())
        return whole, int(value) if whole else value
    if origin is float:
        return type(value) in (int, float) and math.isfinite(value), value
    if origin in (bool, str, NoneType):
        return type(value) is origin, value
    if origin is dict:
        return isinstance(value, Mapping), value
    return True, value  # Any, and enums of other libraries, which check their values


def _told(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (list, tuple):
        return f"a list of {_told(parts[0])} each" if parts else "a list"
    return _WORDS.get(origin, "keys and values")


def types_of(kind: type) -> dict[str, Any]:
    """Annotation of every field that a dataclass is made of."""
    # not the fields' own `type`: argument parsers of transformers write over it
    annotations = {key: told for base in reversed(kind.__mro__) for key, told in inspect.get_annotations(base).items()}
    return {item.name: annotations[item.name] for item in dataclasses.fields(kind) if item.init}
