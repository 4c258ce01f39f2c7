"""The numbers of a codebook report: names, meanings, and which way is better."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A number of [`codebook_report`].

    Attributes:
        name: What tables call it.
        better: `"higher"`, `"lower"` or, where that is no question, `""`.
        meaning: In a few words.
        form: How it is printed, as in `format`.
        value: Finds it in a report: a number, or a list of numbers by level; `None` where there is none.
    """

    name: str
    better: str
    meaning: str
    form: str
    value: Callable[[dict[str, Any]], Any]

    def text(self, value: float | None) -> str:
        return "–" if value is None else format(value, self.form)


def _of_redundancy(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda report: report["redundancy"][name] if report["redundancy"] else None


OVERALL = (
    Measure("items", "", "rows of the catalog", ",", lambda r: r["items"]),
    Measure("SIDs", "", "different ones that items have", ",", lambda r: r["distinct_sids"]),
    Measure(
        "collision rate",
        "lower",
        "share of items with a SID that another has too",
        ".2%",
        lambda r: r["collision_rate"],
    ),
    Measure("distinct sets", "higher", "different SIDs ÷ items", ".2%", lambda r: r["distinct_set_rate"]),
    Measure("largest bucket", "lower", "most items on one SID", ",", lambda r: r["largest_bucket"]),
    Measure(
        "targets on a shared SID",
        "lower",
        "share of test targets that no list of SIDs can tell from another item",
        ".2%",
        lambda r: r.get("targets_on_shared_sid"),
    ),
    Measure(
        "events on a shared SID",
        "lower",
        "share of training events whose item shares its SID",
        ".2%",
        lambda r: r.get("events_on_shared_sid"),
    ),
    Measure(
        "redundancy",
        "lower",
        "normalised mutual information of two codebooks, mean over pairs",
        ".3f",
        _of_redundancy("information"),
    ),
    Measure("redundancy: by chance", "", "the same for codes dealt at random", ".3f", _of_redundancy("chance")),
    Measure(
        "redundancy: adjusted",
        "lower",
        "way from chance (0) to one codebook repeating the other (1)",
        ".3f",
        _of_redundancy("adjusted"),
    ),
    Measure(
        "mean cosine",
        "",
        "of all pairs of item vectors: what cohesion and discrimination are by chance",
        ".3f",
        lambda r: r.get("mean_cosine"),
    ),
)


def _of_levels(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda report: [level[name] for level in report["levels"]]


def _of_overlap(kind: str, name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda report: report[kind][name] if kind in report else None


BY_LEVEL = (
    Measure("codes in use", "higher", "share of the level's codes that some item has", ".1%", _of_levels("use")),
    Measure(
        "perplexity",
        "higher",
        "how many evenly used codes would be as varied; at most the codebook's size",
        ".1f",
        _of_levels("perplexity"),
    ),
    Measure("skew", "lower", "items on the fullest code ÷ items on a code on average", ".1f", _of_levels("skew")),
    Measure(
        "error",
        "lower",
        "‖x − x̂‖² that the first codes leave, 1 for the mean of all vectors",
        ".3f",
        lambda r: r.get("error"),
    ),
    Measure(
        "error of codes alone",
        "lower",
        "the same without what the method keeps beside the codes",
        ".3f",
        lambda r: r["error_of_codes"] if r.get("error_of_codes") != r.get("error") else None,
    ),
    Measure(
        "semantic cohesion",
        "higher",
        "mean cosine of two items with the same first codes",
        ".3f",
        lambda r: r.get("semantic_cohesion"),
    ),
    Measure(
        "preference discrimination",
        "lower",
        "mean cosine of the centres of two different prefixes",
        ".3f",
        lambda r: r.get("preference_discrimination"),
    ),
    *(
        measure
        for kind, who in (("nearest_overlap", "nearest"), ("cooccurrence_overlap", "used together"))
        for measure in (
            Measure(
                f"{who}: overlap",
                "higher",
                f"share of the items {who} that have the same first codes",
                ".2%",
                _of_overlap(kind, "overlap"),
            ),
            Measure(f"{who}: by chance", "", "the same for SIDs dealt at random", ".3%", _of_overlap(kind, "chance")),
            Measure(
                f"{who}: gain",
                "higher",
                "way from chance (0) to perfect (1), by logarithms: compares any two sizes",
                ".3f",
                _of_overlap(kind, "gain"),
            ),
        )
    ),
)
