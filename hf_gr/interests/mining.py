"""The mine stage: dataset folder → interests of its items and users, found by one or several miners (MLIM)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import offline
from ..artifacts import (
    MANIFEST,
    check_output,
    claimed,
    fingerprint,
    is_current,
    read_json,
    report,
    write_json,
    write_manifest,
    writing,
)
from ..dataset import InteractionDataset
from ..embedding.text import DEFAULT_ENCODER, DEFAULT_FIELDS, SentenceEncoder
from ..errors import HfGrError
from ..processes import main_process_first
from ..provenance import TrainingData, learned_from
from ..settings import mapping, nested
from ..splits import SplitKind, check_split
from .answer_cache import AnswerCache
from .asking import Asker, ask_all, cost
from .interviews import Interview, Manner, hear_kept
from .merging import merge
from .miners.endpoint import Endpoint, EndpointSettings, check_number
from .miners.keyphrase import KeyphraseMiner
from .miners.local import LocalSettings, interview_all
from .prompts import PROMPT_VERSION
from .subjects import Finding, Subject, item_subjects, user_subjects


STAGE = "mine"
ANSWERS_FILE = "answers.sqlite"
FAILURES_FILE = "failures.jsonl"
COUNTS_FILE = "mining.json"
SUBJECTS = ("items", "users")


@dataclass
class KeyphraseSettings:
    """Settings of a miner of kind `keyphrase`, which needs no language model.

    Attributes:
        ngram: Shortest and longest phrase, in words.
    """

    ngram: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        given = list(self.ngram) if isinstance(self.ngram, list | tuple) else []
        if len(given) != 2 or not all(type(n) is int for n in given) or not 1 <= given[0] <= given[1]:
            raise HfGrError(f"ngram is {self.ngram!r}; give the shortest and longest phrase in words, such as [1, 3].")
        self.ngram = (given[0], given[1])


Settings = KeyphraseSettings | EndpointSettings | LocalSettings

KINDS: dict[str, type[Settings]] = {
    "keyphrase": KeyphraseSettings,
    "openai": EndpointSettings,
    "transformers": LocalSettings,
}


@dataclass
class MineConfig:
    """Settings of [`mine`]."""

    dataset: str = field(metadata={"help": "Dataset folder to read."})
    output_dir: str = field(metadata={"help": "Folder to write the interests to."})
    split: SplitKind = field(
        default="leave_one_out", metadata={"help": "Split whose training part gives histories and reviews."}
    )
    miners: dict | str | None = field(
        default=None,
        metadata={
            "help": "Name → settings of each miner, with `kind`: keyphrase (the default, without a language model), "
            "openai (any such endpoint: model, base_url, …) or transformers (a chat model in the process)."
        },
    )
    subjects: list[str] = field(
        default_factory=lambda: list(SUBJECTS), metadata={"help": "Whose interests are mined: items, users."}
    )
    fields: list[str] = field(
        default_factory=lambda: list(DEFAULT_FIELDS),
        metadata={"help": "Columns of items.parquet that make an item's text, in order; absent ones are skipped."},
    )
    reviews: int = field(default=3, metadata={"help": "Latest training reviews of an item that are read, at most."})
    max_items: int = field(default=10, metadata={"help": "Latest items of a user's history that are read, at most."})
    images: bool = field(
        default=False, metadata={"help": "Show the items' pictures to miners of kind openai that are not text_only."}
    )
    max_interests: int = field(default=5, metadata={"help": "Interests of one subject and miner, at most."})
    threshold: float = field(
        default=0.75, metadata={"help": "Interests whose vectors have at least this cosine are merged into one."}
    )
    encoder: str = field(
        default=DEFAULT_ENCODER,
        metadata={"help": "sentence-transformers model for merging and for the keyphrase miner."},
    )
    answers: str | None = field(
        default=None,
        metadata={"help": "File that keeps the answers of models; $HF_GR_CACHE/answers.sqlite if left out."},
    )
    limit: int | None = field(
        default=None, metadata={"help": "Mine only the first so many items, and users, for trying out."}
    )
    force: bool = field(default=False, metadata={"help": "Write again even if up to date; kept answers still serve."})

    def __post_init__(self) -> None:
        if isinstance(self.miners, str):  # of the command line
            self.miners = mapping("miners", self.miners)
        if self.miners is None:
            self.miners = {"keyphrase": {"kind": "keyphrase"}}


@dataclass
class _Mined:
    """What one miner did.

    Attributes:
        findings: Of every subject.
        failures: (subject, reason) where there is no usable answer.
        missing: Subjects without an answer, which another run would ask for.
        counts: For `mining.json`; they follow from the answers, whenever those were had.
        run: What this run did, for the manifest.
        stop: Why the miner was stopped, if it was.
    """

    findings: list[list[Finding]]
    failures: list[tuple[Subject, str]] = field(default_factory=list)
    missing: int = 0
    counts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    stop: str | None = None


def mine(config: MineConfig) -> Path:
    """Asks every miner for the interests behind items and users, and merges what they find.

    Only the training part of the split is read. Answers of models are kept in a file as they arrive, so that a run
    that was killed goes on where it stopped, to the same result, and a second one asks nothing. Where answers are
    missing in the end (budget, a server that went away), what there is is written, and the next run goes on.

    Writes `interests.parquet`, `failures.jsonl` (miner, kind, id, reason) and `mining.json` (what each miner did).

    Returns:
        The folder written (or found up to date).

    Raises:
        HfGrError: On settings that do not fit, a broken dataset, or if no miner had a single answer.
    """
    miners = _check(config)
    with main_process_first() as main:
        if main:
            with claimed(config.output_dir):
                _mine(config, miners, Path(config.output_dir))
    return Path(config.output_dir)


def _mine(config: MineConfig, miners: dict[str, Settings], output: Path) -> None:
    settings, inputs = _settings(config, miners), _inputs(config, miners)
    if not config.force and is_current(output, STAGE, settings, inputs) and read_json(output / MANIFEST)["complete"]:
        report(STAGE, {"dataset": config.dataset}, output, current=True)
        return
    answers = [config.answers] if config.answers else []
    check_output(output, STAGE, [config.dataset, config.encoder, *answers])
    subjects, learned = _subjects(config)
    encoder = SentenceEncoder(config.encoder)
    mined = _asked(config, miners, subjects)
    for name, own in miners.items():
        if isinstance(own, KeyphraseSettings):
            miner = KeyphraseMiner(encoder, max_interests=config.max_interests, ngram=own.ngram)
            mined[name] = _Mined(miner.mine(subjects))
    mined = {name: mined[name] for name in miners}
    _say_what_stopped(mined)
    interests = merge(subjects, {name: one.findings for name, one in mined.items()}, encoder, config.threshold)
    complete = not any(one.missing for one in mined.values())
    with writing(output, STAGE) as folder:
        interests.save(folder)
        learned.save(folder)
        _write_failures(mined, folder / FAILURES_FILE)
        counts = {name: {"findings": sum(map(len, one.findings))} | one.counts for name, one in mined.items()}
        write_json(folder / COUNTS_FILE, {"subjects": len(subjects), "interests": len(interests), "miners": counts})
        runs = {name: one.run for name, one in mined.items()}
        write_manifest(folder, STAGE, settings, inputs, complete=complete, run=runs)
    _say_what_is_missing(mined, output)
    report(STAGE, {"dataset": config.dataset}, output)


def _subjects(config: MineConfig) -> tuple[list[Subject], TrainingData]:
    """Whose interests are mined, and what they are told by."""
    dataset = InteractionDataset.load(config.dataset)
    train = dataset.split(config.split).train
    found = []
    if "items" in config.subjects:
        items = item_subjects(dataset, train, fields=config.fields, reviews=config.reviews, images=config.images)
        found += items[: config.limit]
    if "users" in config.subjects:
        found += user_subjects(dataset, train, max_items=config.max_items)[: config.limit]
    return found, learned_from(config.split, train, dataset.item_ids)


def _asked(config: MineConfig, miners: dict[str, Settings], subjects: list[Subject]) -> dict[str, _Mined]:
    """What the miners that are language models found: endpoints all at once, then models in the process."""
    models = {name: own for name, own in miners.items() if not isinstance(own, KeyphraseSettings)}
    if not models:
        return {}
    with AnswerCache(config.answers or offline.cache_dir() / ANSWERS_FILE) as cache:
        talks = {name: _interviews(config, own, subjects) for name, own in models.items()}
        kept = {name: hear_kept(interviews, cache) for name, interviews in talks.items()}
        askers = {
            name: Asker(name, Endpoint(own, config.max_interests), talks[name], cache)
            for name, own in models.items()
            if isinstance(own, EndpointSettings)
        }
        ask_all(list(askers.values()))
        had = {name: asker.requests for name, asker in askers.items()}
        for name, own in models.items():
            if isinstance(own, LocalSettings):
                had[name] = interview_all(name, own, talks[name], cache)
    for name, asker in askers.items():
        if asker.schema_refused:
            print(f"[{STAGE}] miner {name!r}: the server takes no JSON schema; it was asked without.", flush=True)
    stops = {name: asker.stop for name, asker in askers.items()}
    return {name: _mined(talks[name], own, kept[name], had[name], stops.get(name)) for name, own in models.items()}


def _interviews(config: MineConfig, own: EndpointSettings | LocalSettings, subjects: list[Subject]) -> list[Interview]:
    pictures = config.images and isinstance(own, EndpointSettings) and not own.text_only
    manner = Manner(own.kept_as, config.max_interests, pictures, own.options)
    return [Interview(subject, manner) for subject in subjects]


def _mined(
    talks: list[Interview], own: EndpointSettings | LocalSettings, kept: int, had: int, stop: str | None
) -> _Mined:
    answers = [answer for talk in talks for answer in talk.answers]
    tokens_in, tokens_out = sum(answer.tokens_in for answer in answers), sum(answer.tokens_out for answer in answers)
    counts: dict[str, Any] = {
        "answered": sum(talk.finished for talk in talks),
        "repaired": sum(talk.finished and talk.failure is None and len(talk.answers) == 2 for talk in talks),
        "unreadable": sum(talk.finished and talk.failure is not None for talk in talks),
        "unanswered": sum(not talk.finished and talk.failure is not None for talk in talks),
        "not_asked": sum(not talk.finished and talk.failure is None for talk in talks),
        "dropped": sum(talk.dropped for talk in talks),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
    }
    if isinstance(own, EndpointSettings) and own.price_in is not None:
        counts["cost"] = round(cost(own, tokens_in, tokens_out), 6)
    failures = [(talk.subject, talk.failure) for talk in talks if talk.failure is not None]
    missing = counts["unanswered"] + counts["not_asked"]
    run = {"answers": had, "kept_answers": kept, "stopped": stop}
    return _Mined([talk.findings for talk in talks], failures, missing, counts, run, stop)


def _write_failures(mined: dict[str, _Mined], file: Path) -> None:
    lines = [
        json.dumps({"miner": name, "kind": subject.kind, "id": subject.id, "reason": reason}, ensure_ascii=False)
        for name, one in mined.items()
        for subject, reason in one.failures
    ]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _say_what_stopped(mined: dict[str, _Mined]) -> None:
    for name, one in mined.items():
        if one.stop is not None:
            print(f"[{STAGE}] miner {name!r} stopped: {one.stop}", flush=True)
    if all(one.missing and not one.counts["answered"] for one in mined.values()):  # keep what an earlier run wrote
        name, one = next(iter(mined.items()))
        raise HfGrError(f"no miner had an answer; {name!r}: {one.stop or one.failures[0][1]}")


def _say_what_is_missing(mined: dict[str, _Mined], output: Path) -> None:
    for name, one in mined.items():
        if one.run:
            facts = ", ".join(f"{key} {value}" for key, value in one.counts.items())
            print(f"[{STAGE}] miner {name!r}: {one.run['answers']} new answers, {facts}", flush=True)
        if one.missing:
            print(
                f"[{STAGE}] miner {name!r}: {one.missing} subjects have no answer yet; run the same command again "
                f"to go on (failures: {output / FAILURES_FILE}).",
                flush=True,
            )


def _check(config: MineConfig) -> dict[str, Settings]:
    """The settings of every miner."""
    check_split(config.split)
    if not config.subjects or len(set(config.subjects)) < len(config.subjects) or set(config.subjects) - set(SUBJECTS):
        raise HfGrError(f"subjects are {config.subjects}; name items, users or both.")
    if not isinstance(config.miners, dict) or not config.miners:
        raise HfGrError("there are no miners; name one at least, such as {keyphrase: {kind: keyphrase}}.")
    if not 0 < config.threshold <= 1:
        raise HfGrError(f"threshold is {config.threshold}; give a cosine above 0, at most 1.")
    for name in ("max_interests", "max_items"):
        check_number(name, vars(config)[name], whole=True)
    check_number("reviews", config.reviews, whole=True, zero=True)
    if config.limit is not None:
        check_number("limit", config.limit, whole=True)
    miners = {str(name): _miner(str(name), given) for name, given in config.miners.items()}
    seeing = [own for own in miners.values() if isinstance(own, EndpointSettings) and not own.text_only]
    if config.images and (not seeing or "items" not in config.subjects):
        raise HfGrError("images are shown to miners of kind openai that are not text_only, for items; there are none.")
    asked: dict[str, str] = {}
    for name, own in miners.items():
        key = json.dumps([type(own).__name__, _shaping(own)], sort_keys=True)
        if key in asked:
            raise HfGrError(
                f"miners {asked[key]!r} and {name!r} ask the same model in the same way, so that their agreement "
                "would mean nothing; leave one out, or give models that differ names that differ."
            )
        asked[key] = name
    return miners


def _miner(name: str, given: object) -> Settings:
    if not isinstance(given, dict) or given.get("kind") not in KINDS:
        raise HfGrError(f"miner {name!r} needs settings with a `kind`: {', '.join(KINDS)}.")
    kind = KINDS[given["kind"]]
    values = {key: value for key, value in given.items() if key != "kind"}
    if kind is not KeyphraseSettings and not (isinstance(values.get("model"), str) and values["model"]):
        raise HfGrError(f"miner {name!r} needs the name of a model; set its `model`.")
    try:
        return nested(kind, values, given["kind"])
    except HfGrError as error:
        raise HfGrError(f"miner {name!r}: {error}") from None


def _shaping(own: Settings) -> dict[str, Any]:
    """What of a miner's settings its findings depend on."""
    if isinstance(own, KeyphraseSettings):
        return asdict(own)
    seeing = {"text_only": own.text_only} if isinstance(own, EndpointSettings) else {}
    return {"model": own.model, "prompt": PROMPT_VERSION} | own.options | seeing


def _settings(config: MineConfig, miners: dict[str, Settings]) -> dict[str, Any]:
    names = ("split", "subjects", "fields", "reviews", "max_items", "images", "max_interests", "threshold", "encoder")
    kinds = {kind: name for name, kind in KINDS.items()}
    shaping = {name: {"kind": kinds[type(own)]} | _shaping(own) for name, own in miners.items()}
    return {name: vars(config)[name] for name in (*names, "limit")} | {"miners": shaping}


def _inputs(config: MineConfig, miners: dict[str, Settings]) -> dict[str, str]:
    """Fingerprints of what is read; of models only where they are folders, which may be trained again."""
    inputs = {"dataset": fingerprint(config.dataset)}
    if Path(config.encoder).is_dir():
        inputs["encoder"] = fingerprint(config.encoder)
    for name, own in miners.items():
        if isinstance(own, LocalSettings) and Path(own.model).is_dir():
            inputs[f"miner {name}"] = fingerprint(own.model)
    return inputs
