"""MovieLens: 100K out of the recbole wheel, and GroupLens' own 100K, 1M, 10M, latest, 25M and 32M."""

import contextlib
import csv
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_gr.errors import HfGrError
from hf_gr.offline import from_wheel

from .common import finish, settings_of, up_to_date
from .delimited import Delimited, read_delimited
from .events import typed_events
from .files import check_file, open_text
from .filters import DEFAULT, FilterOptions
from .items import items_table


# Ratings file → items file: which of them a folder holds tells the release.
_RELEASES = {
    "ml-100k.inter": "ml-100k.item",  # recbole's form of 100K
    "u.data": "u.item",  # 100K
    "ratings.dat": "movies.dat",  # 1M, 10M
    "ratings.csv": "movies.csv",  # latest-small, latest, 20M, 25M, 32M
}
_FIELDS = ("user_id", "item_id", "rating", "timestamp")
# In the order of the flags of u.item; the first is "unknown".
_GENRES_100K = (
    "|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
)
_GENRES_100K += "Mystery|Romance|Sci-Fi|Thriller|War|Western"
_SOURCE = "MovieLens ({}), GroupLens Research; cite Harper & Konstan 2015; no commercial use without permission."


def prepare_movielens(out: str | Path, path: str | Path | None = None, *, options: FilterOptions = DEFAULT) -> None:
    """Writes a dataset folder from MovieLens ratings; titles stay as they are, genres become `categories`.

    Args:
        out: Folder to write.
        path: A GroupLens zip file, or the folder in it: 100K (`u.data`), 1M or 10M (`ratings.dat`), or latest-small,
            latest, 20M, 25M, 32M (`ratings.csv`). Without it 100K is taken out of the recbole wheel.
        options: What is kept.

    Raises:
        HfGrError: When `path` holds none of the releases, or a file of it is unreadable.
    """
    with _folder(from_wheel("movielens-100k") if path is None else Path(path)) as folder:
        ratings, movies = _find(folder, path)
        files = {"ratings": ratings, "movies": movies}
        settings = settings_of("movielens", files, options)
        if up_to_date(out, settings, files if path is None else {**files, "path": Path(path)}):
            return
        events, time = typed_events(_ratings(ratings), ratings.name, "s")
        finish(
            out,
            events,
            items_table(_movies(movies), movies.name),
            where=ratings.name,
            time=time,
            options=options,
            source=_SOURCE.format("100K" if path is None else f"`{Path(path).name}`"),
            license="other",
            settings=settings,
        )


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield path
        return
    if not zipfile.is_zipfile(check_file(path)):
        raise HfGrError(f"{path} is neither a folder nor a zip file; give GroupLens' zip file or the folder in it.")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        wanted = {*_RELEASES, *_RELEASES.values()}
        try:
            archive.extractall(folder, [name for name in archive.namelist() if Path(name).name in wanted])
        except zipfile.BadZipFile as error:
            raise HfGrError(f"{path} is damaged ({error}); download it again.") from None
        yield Path(folder)


def _find(folder: Path, path: str | Path | None) -> tuple[Path, Path]:
    for ratings, movies in _RELEASES.items():
        for found in (*folder.glob(ratings), *folder.glob(f"*/{ratings}")):
            return check_file(found), check_file(found.with_name(movies))
    raise HfGrError(f"{path or folder} holds none of {', '.join(_RELEASES)}; give a GroupLens zip file or its folder.")


def _ratings(path: Path) -> pa.Table:
    if path.name == "ratings.csv":
        table = read_delimited(path, 4, range(4), Delimited(","))
    elif path.name == "ratings.dat":  # fields end in "::": read with ":", every second column is empty
        table = read_delimited(path, 7, range(0, 7, 2), Delimited(":", header=False, quoted=False))
    else:
        table = read_delimited(path, 4, range(4), Delimited("\t", header=path.suffix == ".inter", quoted=False))
    return table.rename_columns(list(_FIELDS))


def _movies(path: Path) -> Iterator[dict[str, Any]]:
    if path.name == "movies.csv":
        with open_text(path) as handle:
            for row in csv.reader(handle):
                if row[:1] != ["movieId"]:
                    yield _movie(path, row, 3, row[-1].split("|"))
        return
    for line in _lines(path):
        if path.name == "movies.dat":
            fields = line.split("::")
            yield _movie(path, fields, 3, fields[-1].split("|"))
        elif path.name == "u.item":
            fields = line.split("|")
            flags = zip(_GENRES_100K.split("|"), fields[5:], strict=False)
            yield _movie(path, fields, 24, [genre for genre, flag in flags if flag == "1"])
        elif not line.startswith("item_id:"):
            fields = line.split("\t")
            movie = _movie(path, fields, 4, fields[-1].split(" "))
            yield movie | {"title": f"{fields[1]} ({fields[2]})" if fields[2].strip() else fields[1]}


def _movie(path: Path, fields: list[str], expected: int, genres: list[str]) -> dict[str, Any]:
    if len(fields) != expected:
        raise HfGrError(f"{path.name}: {fields!r} has {len(fields)} fields, not {expected}; download the file again.")
    known = [genre for genre in genres if genre not in ("unknown", "(no genres listed)")]
    return {"item_id": fields[0], "title": fields[1], "categories": known}


def _lines(path: Path) -> list[str]:
    """Lines of a text file; GroupLens' older releases are Latin-1, the newer (10M) and recbole's UTF-8."""
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]
