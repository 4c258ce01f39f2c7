"""Recommendations for a file of users, written to one Parquet file; a job that was killed goes on where it stopped."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .answering import answer_each
from .artifacts import check_output_file, claimed, fingerprint, read_json, replacing, settings_key, write_json
from .catalog import SidCatalog
from .decoding import Recommender
from .errors import HfGrError
from .evaluation.predictions import USERS_KEY, WHOLE_HISTORIES
from .limits import Limits
from .offline import local_folder
from .requests import Request, parse_request, warn_skipped
from .search_config import SearchConfig
from .users import read_users


logger = logging.getLogger(__name__)

_KEY = "key.json"
_METADATA_KEY = b"hf_gr.key"
_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "item_ids": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "titles": pa.list_(pa.string()),
        "error": pa.string(),
    }
)


def recommend_batch(
    model: str | Path,
    users: str | Path,
    out: str | Path,
    search: SearchConfig | None = None,
    *,
    batch_size: int = 16,
    max_per_category: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    strict: bool = False,
    part_size: int = 256,
    limits: Limits | None = None,
    **options: Any,
) -> Path:
    """Recommends for every user of a file.

    A request that is wrong or cannot be answered fails alone: its row has the reason in `error` and no items, and one
    warning counts such rows.

    Finished parts lie in `<out>.parts` until the last one is there. A part counts only for the same model, users and
    settings; when any of them has changed the job starts anew. `out` is put in place in one step at the end, and
    left alone when it was made from the same inputs. Any other file that is there is not replaced.

    Args:
        model: Model folder or Hub repo.
        users: Parquet, CSV or JSONL with `user_id` and `history` and optional `exclude`, `exclude_seen`, `allow`,
            `category`, `where`, `query`, `ratings`, `behaviors` (see [`~hf_gr.requests.parse_request`]). In text, ids
            are a list (`["a", "b c"]`) or words ([`~hf_gr.users.cell_ids`]), likewise ratings and behaviors;
            `category` and `where` are one name, or a list. Or a dataset folder: every user with all of the events.
        out: Parquet file with `user_id`, `item_ids`, `scores`, `titles` (lists, best first) and `error` (null where
            there are items), one row per row of `users`, in its order.
        search, max_per_category, batch_size: As for [`~hf_gr.answering.answer`].
        defaults: The same keys, for users of whom the file does not say otherwise: `{"exclude_seen": True}`.
        strict: Whether unknown ids are refused instead of skipped with a warning.
        part_size: Users per part.
        limits: Of what a request may ask; [`Limits`] if left out.
        options: Entries of `search` that are otherwise than there: `top_k=5, num_beams=20`.

    Raises:
        HfGrError: On settings and files that cannot be read, before anything is computed; and where no user at all
            can be answered, with the first one's reason.
    """
    users, out = Path(users), Path(out)
    if out.resolve() == users.resolve():
        raise HfGrError(f"{out} is the file of users; name a new Parquet file.")
    check_output_file(out, lambda file: _key_of(file) is not None)
    if out.suffix != ".parquet":
        raise HfGrError(f"{out} does not end in .parquet, which is what is written; name it so.")
    if part_size < 1:
        raise HfGrError(f"part_size is {part_size}; give at least 1.")
    folder = local_folder(model)
    config = SearchConfig.of(search, **options)
    inputs = {"model": fingerprint(folder), "users": fingerprint(users)}
    defaults = dict(defaults or {})
    settings = asdict(config) | {"max_per_category": max_per_category, "defaults": defaults, "strict": strict}
    settings["part_size"] = part_size
    settings["columns"] = _SCHEMA.names
    key = settings_key("recommend", settings, inputs)
    if _key_of(out) == key.encode():
        logger.info("%s is up to date.", out)
        return out
    recommender = Recommender.from_pretrained(folder, limits=limits)
    wanted: dict[str, Any] = {"search": config, "max_per_category": max_per_category, "batch_size": batch_size}
    answer_each(recommender, [], **wanted)  # settings are refused before a part is written
    user_ids, requests = _read_requests(users, recommender, defaults, strict)
    warn_skipped(requests)
    with claimed(out.with_name(f"{out.name}.parts")) as parts:
        _begin(parts, key)
        files = []
        with tqdm(total=len(requests), desc="recommend", unit="user") as progress:
            for number, start in enumerate(range(0, len(requests), part_size)):
                part = slice(start, start + part_size)
                files.append(parts / f"part-{number:05d}.parquet")
                if not files[-1].is_file():
                    answers = answer_each(recommender, requests[part], **wanted)
                    _write_whole([_table(user_ids[part], answers, recommender.catalog)], files[-1], key)
                progress.update(len(requests[part]))
        errors = [error for file in files for error in pq.read_table(file, columns=["error"])["error"].to_pylist()]
        if None not in errors:
            _clear(parts)
        _check_errors(users, user_ids, errors)
        _write_whole((pq.read_table(file) for file in files), out, key, whole_histories=users.is_dir())
        _clear(parts)
    return out


def _key_of(out: Path) -> bytes | None:
    """The key that a file of ours was made under."""
    try:
        return (pq.read_schema(out).metadata or {}).get(_METADATA_KEY)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _begin(parts: Path, key: str) -> None:
    """Makes the folder of finished parts, emptied if they belong to other inputs.

    Raises [`HfGrError`] if there is a folder of that name that is not ours: one with other files and no key.
    """
    if parts.is_dir() and any(parts.iterdir()):
        known = read_json(parts / _KEY) if (parts / _KEY).is_file() else None
        if not isinstance(known, str):
            raise HfGrError(
                f"{parts}, where finished parts are kept, holds other files; move it, or name another --out."
            )
        if known != key:
            _clear(parts)
    parts.mkdir(parents=True, exist_ok=True)
    write_json(parts / _KEY, key)


def _clear(parts: Path) -> None:
    """Removes the parts and, if nothing else lies in it, their folder."""
    for file in [*parts.glob("part-*.parquet"), *parts.glob(".part-*.hf-gr-tmp"), parts / _KEY]:
        file.unlink()
    if not any(parts.iterdir()):
        parts.rmdir()


def _write_whole(
    tables: Sequence[pa.Table] | Iterator[pa.Table], file: Path, key: str, *, whole_histories: bool = False
) -> None:
    """Writes tables as one file, in one step. Lists made from whole histories say so, as they cannot be judged."""
    metadata = {_METADATA_KEY: key.encode()} | ({USERS_KEY: WHOLE_HISTORIES} if whole_histories else {})
    with replacing(file) as half, pq.ParquetWriter(half, _SCHEMA.with_metadata(metadata)) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(metadata))


def _table(
    user_ids: Sequence[str], answers: Sequence[tuple[np.ndarray, np.ndarray] | HfGrError], catalog: SidCatalog
) -> pa.Table:
    nothing = (np.empty(0, np.int64), np.empty(0, np.float32))
    lists = [nothing if isinstance(result, HfGrError) else result for result in answers]
    columns = {
        "user_id": list(user_ids),
        "item_ids": [[catalog.item_ids[row] for row in items] for items, _ in lists],
        "scores": [scores for _, scores in lists],
        "titles": [[catalog.titles[row] for row in items] for items, _ in lists],
        "error": [str(result) if isinstance(result, HfGrError) else None for result in answers],
    }
    return pa.table(columns, schema=_SCHEMA)


def _read_requests(
    path: Path, recommender: Recommender, defaults: dict[str, Any], strict: bool
) -> tuple[list[str], list[Request | HfGrError]]:
    user_ids: list[str] = []
    requests: list[Request | HfGrError] = []
    catalog, context = recommender.catalog, recommender.vocabulary.context
    parse_request({"history": []} | defaults, catalog, context, strict=strict, limits=recommender.limits)  # for all
    for user_id, fields in read_users(path, catalog, context):
        user_ids.append(user_id)
        try:
            if isinstance(fields, HfGrError):
                raise fields
            request = parse_request(defaults | fields, catalog, context, strict=strict, limits=recommender.limits)
        except HfGrError as error:
            requests.append(error)
        else:
            requests.append(request)
    if not any(isinstance(request, Request) for request in requests):
        raise HfGrError(_first_failure(path, user_ids, list(map(str, requests))))
    return user_ids, requests


def _check_errors(path: Path, user_ids: Sequence[str], errors: Sequence[str | None]) -> None:
    """Warns of users without an answer; raises [`HfGrError`] where nobody has one."""
    failed = sum(error is not None for error in errors)
    if failed == len(errors):
        raise HfGrError(_first_failure(path, user_ids, errors))
    if failed:
        first = _first_failure(path, user_ids, errors)
        logger.warning("%d of %d users have no answer; column 'error' says why (%s)", failed, len(errors), first)


def _first_failure(path: Path, user_ids: Sequence[str], errors: Sequence[str | None]) -> str:
    user_id, error = next(pair for pair in zip(user_ids, errors, strict=True) if pair[1] is not None)
    return f"{path}, user {user_id!r}: {error}"
