"""Recommendations for a file of users, written to one Parquet file; a job that was killed goes on where it stopped."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .artifacts import fingerprint, read_json, settings_key, write_json
from .catalog import SidCatalog
from .dataset import InteractionDataset
from .decoding import Recommender
from .errors import HfGrError, first_line
from .offline import local_folder
from .pipeline import answer
from .requests import REQUEST_KEYS, Request, check_skipped, parse_request


logger = logging.getLogger(__name__)

_KEY = "key.json"
_METADATA_KEY = b"hf_gr.key"
_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "item_ids": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "titles": pa.list_(pa.string()),
    }
)


def recommend_batch(
    model: str | Path,
    users: str | Path,
    out: str | Path,
    *,
    top_k: int = 10,
    num_beams: int = 50,
    batch_size: int = 16,
    max_per_category: int | None = None,
    reflection: float = 0.0,
    defaults: Mapping[str, Any] | None = None,
    strict: bool = False,
    part_size: int = 256,
) -> Path:
    """Recommends for every user of a file.

    Finished parts lie in `<out>.parts` until the last one is there. A part counts only for the same model, users and
    settings; when any of them has changed the job starts anew. `out` is put in place in one step at the end, and
    left alone when it was made from the same inputs.

    Args:
        model: Model folder or Hub repo.
        users: Parquet, CSV or JSONL with `user_id` and `history` and optional `exclude`, `exclude_seen`, `allow`,
            `category`, `where`, `query`, `ratings`, `behaviors` (see [`~hf_gr.requests.parse_request`]). Lists of ids,
            ratings and behaviours may be written as words with spaces between; `category` and `where` as words are
            one name. Or a dataset folder: every user with all of the events.
        out: Parquet file with `user_id`, `item_ids`, `scores`, `titles` (lists, best first), one row per row of
            `users`, in its order.
        top_k, num_beams, max_per_category, batch_size, reflection: As for [`~hf_gr.pipeline.answer`].
        defaults: The same keys, for users of whom the file does not say otherwise: `{"exclude_seen": True}`.
        strict: Whether ids that are unknown or removed are refused instead of skipped with a warning.
        part_size: Users per part.

    Raises:
        HfGrError: On input that cannot be read, naming file and user, before anything is computed.
    """
    users, out = Path(users), Path(out)
    if out.is_dir() or out.resolve() == users.resolve():
        raise HfGrError(f"{out} is {'a folder' if out.is_dir() else 'the file of users'}; name a new Parquet file.")
    if part_size < 1:
        raise HfGrError(f"part_size is {part_size}; give at least 1.")
    folder = local_folder(model)
    search: dict[str, Any] = {"top_k": top_k, "num_beams": num_beams, "max_per_category": max_per_category}
    search["reflection"] = reflection
    inputs = {"model": fingerprint(folder), "users": fingerprint(users)}
    defaults = dict(defaults or {})
    settings = search | {"defaults": defaults, "strict": strict, "part_size": part_size}
    key = settings_key("recommend", settings, inputs)
    if _made_from(out, key):
        logger.info("%s is up to date.", out)
        return out
    recommender = Recommender.from_pretrained(folder)
    recommender.reflection(reflection)  # refused, if so, before a part is written
    user_ids, requests = _read_requests(users, recommender.catalog, recommender.vocabulary.context, defaults)
    check_skipped(requests, strict)
    parts = _parts_folder(out, key)
    files = []
    with tqdm(total=len(requests), desc="recommend", unit="user") as progress:
        for number, start in enumerate(range(0, len(requests), part_size)):
            part = slice(start, start + part_size)
            files.append(parts / f"part-{number:05d}.parquet")
            if not files[-1].is_file():
                answers = answer(recommender, requests[part], batch_size=batch_size, **search)
                _write_whole([_table(user_ids[part], answers, recommender.catalog)], files[-1], key)
            progress.update(len(requests[part]))
    _write_whole((pq.read_table(file) for file in files), out, key)
    shutil.rmtree(parts)
    return out


def _made_from(out: Path, key: str) -> bool:
    try:
        return (pq.read_schema(out).metadata or {}).get(_METADATA_KEY) == key.encode()
    except (FileNotFoundError, pa.ArrowInvalid):
        return False


def _parts_folder(out: Path, key: str) -> Path:
    """The folder of finished parts, emptied if they belong to other inputs."""
    parts = out.with_name(f"{out.name}.parts")
    if parts.is_dir() and not ((parts / _KEY).is_file() and read_json(parts / _KEY) == key):
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    write_json(parts / _KEY, key)
    return parts


def _write_whole(tables: Sequence[pa.Table] | Iterator[pa.Table], file: Path, key: str) -> None:
    """Writes tables to a neighbour file which then takes the name: half a file never bears it."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with pq.ParquetWriter(temporary, _SCHEMA.with_metadata({_METADATA_KEY: key})) as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata({_METADATA_KEY: key}))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _table(user_ids: Sequence[str], answers: Sequence[tuple[np.ndarray, np.ndarray]], catalog: SidCatalog) -> pa.Table:
    columns = {
        "user_id": list(user_ids),
        "item_ids": [[catalog.item_ids[row] for row in items] for items, _ in answers],
        "scores": [scores for _, scores in answers],
        "titles": [[catalog.titles[row] for row in items] for items, _ in answers],
    }
    return pa.table(columns, schema=_SCHEMA)


def _read_requests(
    path: Path, catalog: SidCatalog, context: str, defaults: dict[str, Any]
) -> tuple[list[str], list[Request]]:
    rows = _dataset_rows(path) if path.is_dir() else _file_rows(path)
    user_ids, requests = [], []
    for user_id, fields in rows:
        try:
            requests.append(parse_request(defaults | fields, catalog, context))
        except HfGrError as error:
            raise HfGrError(f"{path}, user {user_id!r}: {error}") from None
        user_ids.append(user_id)
    return user_ids, requests


def _dataset_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every user with the whole history."""
    dataset = InteractionDataset.load(folder)
    events = dataset.events
    for user_id, start, end in zip(events.user_ids, events.ptr[:-1], events.ptr[1:], strict=True):
        fields = {"history": [dataset.item_ids[row] for row in events.items[start:end]]}
        if events.ratings is not None:
            fields["ratings"] = events.ratings[start:end].tolist()
        if events.behaviors is not None:
            fields["behaviors"] = [value or "unknown" for value in events.behaviors[start:end]]
        yield user_id, fields


def _file_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    table = _read_table(file)
    for name in ("user_id", "history"):
        if name not in table.column_names:
            raise HfGrError(f"{file} has no column {name!r} (it has: {', '.join(table.column_names)}); rename it.")
    if table.num_rows == 0:
        raise HfGrError(f"{file} holds no users; give at least one row.")
    columns = [name for name in REQUEST_KEYS if name in table.column_names]
    for row in table.select(["user_id", *columns]).to_pylist():
        fields = {name: _cell(name, row[name]) for name in columns}
        yield str(row["user_id"]), {name: value for name, value in fields.items() if value is not None}


def _read_table(file: Path) -> pa.Table:
    if not file.is_file():
        raise HfGrError(f"{file} does not exist; give a Parquet, CSV or JSONL file of users, or a dataset folder.")
    try:
        match file.suffix:
            case ".parquet":
                return pq.read_table(file)
            case ".csv":  # ids stay strings, whatever they look like
                types = {name: pa.string() for name in ("user_id", *REQUEST_KEYS)} | {"exclude_seen": pa.bool_()}
                return pyarrow.csv.read_csv(file, convert_options=pyarrow.csv.ConvertOptions(column_types=types))
            case ".jsonl" | ".json":
                return pyarrow.json.read_json(file)
    except pa.ArrowInvalid as error:
        raise HfGrError(f"{file} cannot be read ({first_line(error)}); is it what its name says?") from None
    raise HfGrError(f"{file} is neither .parquet, .csv nor .jsonl; write the users as one of these.")


def _cell(name: str, value: Any) -> Any:
    """A cell as [`parse_request`] takes it: words become a list, and an empty cell is no field at all."""
    if name == "query" or not isinstance(value, str):
        return value
    if name in ("category", "where"):  # a category may be of several words
        return value or None
    words = value.split()
    if name == "ratings":
        with contextlib.suppress(ValueError):  # words that are no numbers are refused with the user's name
            return [float(word) for word in words]
    return words if words or name == "history" else None
