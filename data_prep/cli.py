"""`hf-gr prepare SOURCE … --out DIR`: one command a source."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hf_gr.artifacts import check_output, write_manifest, writing
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError

from .amazon import prepare_amazon
from .filters import Deduplicate, FilterOptions
from .hub import prepare_hub
from .minionerec import WITH_COLD_ITEMS, prepare_minionerec
from .movielens import prepare_movielens
from .sessions import prepare_sessions
from .table import prepare_table
from .times import TimeUnit


app = typer.Typer(help="Turn raw logs into a dataset folder.")
_IMPORT = "import"  # the stage of a catalog that was made elsewhere

Out = Annotated[Path, typer.Option(help="Dataset folder to write.")]
MinRating = Annotated[float | None, typer.Option(help="Drop interactions rated lower.")]
KCore = Annotated[int, typer.Option(help="Drop users and items with fewer interactions, until none is left.")]
MinUserEvents = Annotated[int, typer.Option(help="Drop users with fewer interactions (leave-one-out needs 3).")]
Dedup = Annotated[Deduplicate, typer.Option(help="One of the events equal in all; or only the first with an item.")]
KeepCold = Annotated[bool, typer.Option(help="Keep items that end up without interactions.")]
DropUnknown = Annotated[bool, typer.Option(help="Drop interactions of items that the items table lacks.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="OURS=THEIRS, for each column of another name; repeat it.")
]
ItemColumns = Annotated[
    list[str] | None, typer.Option("--item-column", help="OURS=THEIRS, where the items file calls it differently.")
]
UserColumns = Annotated[
    list[str] | None, typer.Option("--user-column", help="OURS=THEIRS, where the users file calls it differently.")
]
ExposureColumns = Annotated[
    list[str] | None,
    typer.Option("--exposure-column", help="OURS=THEIRS, where the exposures file calls it differently."),
]
Separator = Annotated[str | None, typer.Option(help="What parts the categories in a text cell; | if left out.")]
Keep = Annotated[list[str] | None, typer.Option(help="Further column of the log to keep, such as device; repeat it.")]
Licence = Annotated[str, typer.Option(help="Licence of the data, for the dataset card.")]
Source = Annotated[str | None, typer.Option(help="A sentence on where the data comes from, for the dataset card.")]
Unit = Annotated[TimeUnit, typer.Option(help="Unit of the time column.")]
AnyYear = Annotated[bool, typer.Option("--any-year", help="Take times before 1970 and after 2100 too.")]
DropEmpty = Annotated[bool, typer.Option("--drop-empty", help="Drop rows without user, item or time.")]


@app.command()
def movielens(
    out: Out,
    path: Annotated[Path | None, typer.Option(help="GroupLens zip or folder; without it 100K from a wheel.")] = None,
    min_rating: MinRating = None,
    k_core: KCore = 0,
    min_user_events: MinUserEvents = 0,
    deduplicate: Dedup = "exact",
    keep_cold_items: KeepCold = False,
    drop_unknown_items: DropUnknown = False,
) -> None:
    """MovieLens 100K, 1M, latest or 32M."""
    options = FilterOptions(min_rating, k_core, min_user_events, deduplicate, keep_cold_items, drop_unknown_items)
    prepare_movielens(out, path, options=options)


@app.command()
def amazon(
    reviews: Annotated[Path, typer.Argument(help="Raw reviews of one category (.json.gz, .jsonl.gz).")],
    out: Out,
    metadata: Annotated[Path | None, typer.Option(help="Raw item metadata of that category.")] = None,
    min_rating: MinRating = None,
    k_core: KCore = 5,
    min_user_events: MinUserEvents = 0,
    deduplicate: Dedup = "exact",
    keep_cold_items: KeepCold = False,
    drop_unknown_items: DropUnknown = False,
) -> None:
    """Amazon reviews of 2014, 2018 or 2023."""
    options = FilterOptions(min_rating, k_core, min_user_events, deduplicate, keep_cold_items, drop_unknown_items)
    prepare_amazon(out, reviews, metadata, options=options)


@app.command()
def table(
    interactions: Annotated[Path, typer.Argument(help="CSV, TSV, JSONL or Parquet, gzipped or not.")],
    out: Out,
    items: Annotated[Path | None, typer.Option(help="Table of items; without it they are made from the ids.")] = None,
    column: Columns = None,
    item_column: ItemColumns = None,
    users: Annotated[Path | None, typer.Option(help="Table of users: user_id and whatever is known of them.")] = None,
    user_column: UserColumns = None,
    exposures: Annotated[
        Path | None, typer.Option(help="Table of what users were shown: user_id, item_id, timestamp, clicked, …")
    ] = None,
    exposure_column: ExposureColumns = None,
    time_unit: Unit = "auto",
    any_year: AnyYear = False,
    drop_empty: DropEmpty = False,
    category_separator: Separator = None,
    flag: Annotated[
        list[str] | None, typer.Option(help="Column of the items that says yes or no, such as in_stock; repeatable.")
    ] = None,
    keep: Keep = None,
    min_rating: MinRating = None,
    k_core: KCore = 0,
    min_user_events: MinUserEvents = 0,
    deduplicate: Dedup = "exact",
    keep_cold_items: KeepCold = False,
    drop_unknown_items: DropUnknown = False,
    source: Source = None,
    license: Licence = "unknown",
) -> None:
    """Your own logs, with a column map."""
    prepare_table(
        out,
        interactions,
        items,
        users,
        exposures,
        columns=_mapping(column),
        item_columns=_mapping(item_column),
        user_columns=_mapping(user_column),
        exposure_columns=_mapping(exposure_column),
        time_unit=time_unit,
        any_year=any_year,
        drop_empty=drop_empty,
        category_separator=category_separator,
        flags=flag or [],
        keep=keep or [],
        options=FilterOptions(min_rating, k_core, min_user_events, deduplicate, keep_cold_items, drop_unknown_items),
        source=source,
        license=license,
    )


@app.command()
def sessions(
    files: Annotated[list[Path], typer.Argument(help="Tables of sessions: session_id, item_ids, behaviors.")],
    out: Out,
    items: Annotated[Path | None, typer.Option(help="Table of items.")] = None,
    column: Columns = None,
    item_column: ItemColumns = None,
    target_behavior: Annotated[
        str | None, typer.Option(help="Behavior of the item in a next-item column; buy for bought_item_id.")
    ] = None,
    undo_augmentation: Annotated[
        bool, typer.Option("--undo-augmentation", help="Put the rows that a session was cut into together again.")
    ] = False,
    keep: Keep = None,
    min_user_events: MinUserEvents = 0,
    k_core: KCore = 0,
    deduplicate: Dedup = "exact",
    keep_cold_items: KeepCold = False,
    drop_unknown_items: DropUnknown = False,
    source: Source = None,
    license: Licence = "unknown",
) -> None:
    """Rows of item lists with behaviors (the RetailRocket form)."""
    prepare_sessions(
        out,
        files,
        items,
        columns=_mapping(column),
        item_columns=_mapping(item_column),
        target_behavior=target_behavior,
        undo_augmentation=undo_augmentation,
        keep=keep or [],
        options=FilterOptions(None, k_core, min_user_events, deduplicate, keep_cold_items, drop_unknown_items),
        source=source,
        license=license,
    )


@app.command()
def hub(
    dataset: Annotated[str, typer.Argument(help="Dataset id or folder that datasets.load_dataset reads.")],
    out: Out,
    config: Annotated[str | None, typer.Option(help="Config of the dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    items_dataset: Annotated[str | None, typer.Option(help="Dataset that holds the items.")] = None,
    items_config: Annotated[str | None, typer.Option(help="Config that holds the items.")] = None,
    items_split: Annotated[str, typer.Option(help="Split that holds the items.")] = "train",
    users_config: Annotated[str | None, typer.Option(help="Config that holds what is known of users.")] = None,
    users_split: Annotated[str, typer.Option(help="Split that holds the users.")] = "train",
    exposures_config: Annotated[str | None, typer.Option(help="Config that holds what users were shown.")] = None,
    exposures_split: Annotated[str, typer.Option(help="Split that holds the exposures.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Revision of the dataset.")] = None,
    column: Columns = None,
    item_column: ItemColumns = None,
    user_column: UserColumns = None,
    exposure_column: ExposureColumns = None,
    time_unit: Unit = "auto",
    any_year: AnyYear = False,
    drop_empty: DropEmpty = False,
    category_separator: Separator = None,
    keep: Keep = None,
    min_rating: MinRating = None,
    k_core: KCore = 0,
    min_user_events: MinUserEvents = 0,
    deduplicate: Dedup = "exact",
    keep_cold_items: KeepCold = False,
    drop_unknown_items: DropUnknown = False,
) -> None:
    """Any dataset of the Hugging Face Hub."""
    prepare_hub(
        out,
        dataset,
        config=config,
        split=split,
        items_dataset=items_dataset,
        items_config=items_config,
        items_split=items_split,
        users_config=users_config,
        users_split=users_split,
        exposures_config=exposures_config,
        exposures_split=exposures_split,
        revision=revision,
        columns=_mapping(column),
        item_columns=_mapping(item_column),
        user_columns=_mapping(user_column),
        exposure_columns=_mapping(exposure_column),
        time_unit=time_unit,
        any_year=any_year,
        drop_empty=drop_empty,
        category_separator=category_separator,
        keep=keep or [],
        options=FilterOptions(min_rating, k_core, min_user_events, deduplicate, keep_cold_items, drop_unknown_items),
    )


@app.command()
def minionerec(
    interactions: Annotated[list[Path], typer.Argument(help="Its csv files (train, valid, test).")],
    items: Annotated[Path, typer.Option(help="Its item json.")],
    out: Out,
    index: Annotated[Path | None, typer.Option(help="Its index json, with the SIDs.")] = None,
    catalog: Annotated[Path | None, typer.Option(help="Also write the SIDs as a catalog to this folder.")] = None,
    drop_unknown_items: DropUnknown = False,
    license: Licence = "unknown",
) -> None:
    """MiniOneRec's files, semantic IDs included."""
    if catalog is not None and index is None:
        raise HfGrError("--catalog needs the SIDs; name MiniOneRec's index json with --index.")
    if catalog is not None:
        check_output(catalog, _IMPORT, [*interactions, items])
    options = replace(WITH_COLD_ITEMS, drop_unknown_items=drop_unknown_items)
    codes = prepare_minionerec(out, interactions, items, index, options=options, license=license)
    if catalog is not None and codes is not None:
        sizes = (codes.max(axis=0) + 1).tolist()
        dataset = InteractionDataset.load(out)
        with writing(catalog, _IMPORT, [out]) as folder:
            SidCatalog.from_codes(codes, dataset.items, sizes).save(folder)
            write_manifest(folder, _IMPORT, {"source": "minionerec"}, {})


def _mapping(pairs: list[str] | None) -> dict[str, str]:
    mapping = {}
    for pair in pairs or []:
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours or not theirs:
            raise HfGrError(f"column map {pair!r} is not of the form OURS=THEIRS, such as user_id=uid.")
        mapping[ours] = theirs
    return mapping
