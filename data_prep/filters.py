"""What is kept of the interactions: minimum rating, de-duplication, k-core; and the items that go with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import daft
import pyarrow as pa
import pyarrow.compute as pc
from daft import col, lit

from hf_gr.errors import HfGrError

from .files import ROW
from .items import items_from_ids
from .values import same_but_written_otherwise


Deduplicate = Literal["exact", "first", "none"]


@dataclass(frozen=True)
class FilterOptions:
    """What is kept; every source takes it.

    Args:
        min_rating: Interactions rated lower, or not rated, are dropped.
        k_core: Users and items with fewer interactions are dropped, again and again until none is left.
        min_user_events: Users with fewer interactions are dropped (the items' threshold stays `k_core`).
        deduplicate: `"exact"` keeps one of the events that agree in all that is read of them (user, item, full time,
            session, behavior, rating, review, kept columns), `"first"` only the first event of a user with an item,
            `"none"` all.
        keep_cold_items: Whether items that end up without interactions stay among the items.
        drop_unknown_items: Whether interactions of items that the items table lacks are dropped rather than refused.
    """

    min_rating: float | None = None
    k_core: int = 0
    min_user_events: int = 0
    deduplicate: Deduplicate = "exact"
    keep_cold_items: bool = False
    drop_unknown_items: bool = False

    def __post_init__(self) -> None:
        if self.deduplicate not in ("exact", "first", "none"):
            raise HfGrError(f"deduplicate is {self.deduplicate!r}; use 'exact', 'first' or 'none'.")
        if self.k_core < 0 or self.min_user_events < 0:
            raise HfGrError(f"k_core {self.k_core} and min_user_events {self.min_user_events} must not be negative.")


DEFAULT = FilterOptions()


def filter_events(
    events: daft.DataFrame, items: pa.Table | None, options: FilterOptions, where: str | Path
) -> tuple[pa.Table, pa.Table]:
    """Applies the options in the order of this function and prints the counts after each step.

    Args:
        events: From `typed_events`.
        items: Known items; `None` makes them from the ids of the interactions.
        options: What is kept.
        where: Interactions file, for messages.

    Returns:
        Interactions sorted by user, time and `_row`, without columns that begin with `_`; and items in their own
        order. Raises [`HfGrError`] on unknown items, and when nothing is left.
    """
    _check_options(items, options)
    steps = _Steps(where)
    steps.start(events)
    if items is not None:
        known = _known(events, items, options.drop_unknown_items, where)
        if options.drop_unknown_items:
            events = steps.done("known items", known, "--drop-unknown-items leaves nothing: no item is known")
    if options.min_rating is not None:
        least = options.min_rating
        events = steps.done(f"rating >= {least:g}", at_least(events, least, where), f"lower --min-rating {least:g}")
    if options.deduplicate != "none":
        kept = deduplicate(events, options.deduplicate)
        events = steps.done(f"deduplicate ({options.deduplicate})", kept, "leave --deduplicate out")
    if options.k_core or options.min_user_events:
        users = max(options.k_core, options.min_user_events)
        name = f"k-core (users {users}, items {options.k_core})"
        given = {"--k-core": options.k_core, "--min-user-events": options.min_user_events}
        remedy = " or ".join(f"{option} {least}" for option, least in given.items() if least)
        events = steps.done(name, k_core(events, users=users, items=options.k_core), f"lower {remedy}")
    helpers = [name for name in events.column_names if name.startswith("_")]
    interactions = events.sort(["user_id", "timestamp", ROW]).exclude(*helpers).to_arrow()
    if items is None:
        return interactions, items_from_ids(sorted(pc.unique(interactions["item_id"]).to_pylist()))
    if not options.keep_cold_items:
        before = items.num_rows
        items = items.filter(among(items["item_id"], interactions["item_id"]))
        steps.line("items with interactions", f"{before:,} -> {items.num_rows:,} items in the table")
    return interactions, items


def k_core(events: daft.DataFrame, *, users: int, items: int) -> daft.DataFrame:
    """The largest part in which every user has at least `users` interactions and every item at least `items`.

    With `users == items == k` this is the k-core of the user-item graph (Seidman 1983), repeated interactions counted
    each, as in the Amazon 5-core data. The outcome does not depend on the order of removal.
    """
    rows = events.count_rows()
    while True:
        for name, least in (("user_id", users), ("item_id", items)):
            frequent = events.groupby(name).agg(col(ROW).count().alias("count")).where(col("count") >= lit(least))
            events = events.join(frequent.select(name), on=name, how="semi")
        events = events.collect()
        left = events.count_rows()
        if left == rows:
            return events
        rows = left


def deduplicate(events: daft.DataFrame, kind: Deduplicate) -> daft.DataFrame:
    """Keeps one event of those that agree: see [`FilterOptions`]; ties go to the first by `_row`."""
    if kind == "first":
        first = events.groupby("user_id", "item_id").agg(col("timestamp").min())
        events = events.join(first, on=["user_id", "item_id", "timestamp"], how="semi")
        same = ["user_id", "item_id"]
    else:
        same = [name for name in events.column_names if name != ROW]
    kept = events.groupby(*same).agg(col(ROW).min()).select(ROW)
    return events.join(kept, on=ROW, how="semi").collect()


def at_least(events: daft.DataFrame, rating: float, where: str | Path) -> daft.DataFrame:
    """Events rated `rating` or higher."""
    if "rating" not in events.column_names:
        raise HfGrError(
            f"{where} has no column 'rating', which --min-rating {rating:g} needs; map it: --column rating=THEIR_NAME."
        )
    return events.where(col("rating") >= lit(rating)).collect()


def _check_options(items: pa.Table | None, options: FilterOptions) -> None:
    """An option that says nothing is refused."""
    for option, given in (
        ("--drop-unknown-items", options.drop_unknown_items),
        ("--keep-cold-items", options.keep_cold_items),
    ):
        if given and items is None:
            raise HfGrError(
                f"{option} speaks of a table of items, and none is given; give one, or leave {option} out."
            )


def _known(events: daft.DataFrame, items: pa.Table, drop: bool, where: str | Path) -> daft.DataFrame:
    known = daft.from_arrow(items.select(["item_id"]))
    unknown = events.join(known, on="item_id", how="anti").collect()
    count = unknown.count_rows()
    if not count:
        return events
    written = _written_otherwise(unknown, items)
    if drop:
        if written:
            print(f"[prepare] unknown items: {written}", flush=True)
        return events.join(known, on="item_id", how="semi").collect()
    first = unknown.sort(ROW).limit(1).to_pydict()
    remedy = f"{written}; write the ids of both files alike" if written else "add it to the items"
    raise HfGrError(
        f"{where}: {count} interaction(s) name an item that is not among the items (first: item "
        f"{first['item_id'][0]!r} of user {first['user_id'][0]!r}); {remedy}, or drop such rows with "
        "--drop-unknown-items."
    )


def _written_otherwise(unknown: daft.DataFrame, items: pa.Table) -> str:
    """What to say where unknown ids differ from those of items by zeros in front or `.0` at the end; else nothing."""
    known = {same_but_written_otherwise(item_id): item_id for item_id in items["item_id"].to_pylist()}
    names = unknown.select("item_id").distinct().sort("item_id").to_pydict()["item_id"]
    pairs = [
        (name, known[same_but_written_otherwise(name)]) for name in names if same_but_written_otherwise(name) in known
    ]
    if not pairs:
        return ""
    (first, theirs), many = pairs[0], len(pairs)
    return (
        f"{many} of these {len(names)} ids differ from those of items only by zeros in front or '.0' at the end "
        f"({first!r} is {theirs!r} among the items)"
    )


def among(values: pa.ChunkedArray, allowed: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where the values are, bool."""
    return pc.is_in(values.cast(pa.string()), pc.unique(allowed).cast(pa.string()))


class _Steps:
    """Prints the counts before and after every step; refuses to go on with nothing."""

    def __init__(self, where: str | Path) -> None:
        self.where = where
        self.counts: dict[str, int] = {}

    def start(self, events: daft.DataFrame) -> None:
        self.counts = _count(events)
        if not self.counts["interactions"]:
            raise HfGrError(f"{self.where} holds no interactions; check the file.")
        self.line("read", ", ".join(f"{value:,} {name}" for name, value in self.counts.items()))

    def done(self, step: str, events: daft.DataFrame, remedy: str) -> daft.DataFrame:
        before, self.counts = self.counts, _count(events)
        self.line(step, ", ".join(f"{before[name]:,} -> {value:,} {name}" for name, value in self.counts.items()))
        if not self.counts["interactions"]:
            raise HfGrError(f"{self.where}: no interactions are left after the step '{step}'; {remedy}.")
        return events

    def line(self, step: str, text: str) -> None:
        print(f"[prepare] {step}: {text}", flush=True)


def _count(events: daft.DataFrame) -> dict[str, int]:
    found = events.agg(
        col("user_id").count_distinct().alias("users"),
        col("item_id").count_distinct().alias("items"),
        col(ROW).count().alias("interactions"),
    ).to_pydict()
    return {name: value[0] for name, value in found.items()}
