"""The command line: `hf-gr prepare | mine | label | embed | quantize | inspect | sft | grpo | retrieve | rank |
remember | evaluate | recommend | add-items | remove-items | push | bench | tune`.

Stages take `--config FILE.yaml` (or the name of a recipe of the package) and every key of their config as an option,
by TRL's parser; `recipes/*.py` run the same commands under `accelerate launch`.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_prep.cli import app as prepare_app

from . import grids
from .endings import INTERRUPTED, leave_after
from .endings import run_reporting_errors as run_reporting_errors
from .errors import HfGrError
from .offline import local_folder
from .search_config import Mixture, SearchConfig
from .terminal import clean, plain


app = typer.Typer(
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a Hugging Face causal LM into a generative recommender.",
)
app.add_typer(prepare_app, name="prepare")

_TITLE = 80  # characters of a title in a table
_PARSED_BY_TRL = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def _options(debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False) -> None:
    """Turn a Hugging Face causal LM into a generative recommender."""


@app.command(context_settings=_PARSED_BY_TRL)
def embed(context: typer.Context) -> None:
    """Item vectors from texts and training histories. Options: --config FILE, --help."""
    from .arguments import parse_config
    from .embedding.stage import EmbedConfig
    from .embedding.stage import embed as run

    run(parse_config(EmbedConfig, context.args, context.command_path))


@app.command(context_settings=_PARSED_BY_TRL)
def mine(context: typer.Context) -> None:
    """Interests of items and users, found by language models or keyphrases. Options: --config FILE, --help."""
    from .arguments import parse_config
    from .interests.mining import MineConfig
    from .interests.mining import mine as run

    run(parse_config(MineConfig, context.args, context.command_path))


@app.command(context_settings=_PARSED_BY_TRL)
def quantize(context: typer.Context) -> None:
    """Semantic IDs from item vectors. Options: --config FILE, --help."""
    from .arguments import parse_config
    from .quantizers.stage import QuantizeConfig
    from .quantizers.stage import quantize as run

    run(parse_config(QuantizeConfig, context.args, context.command_path))


@app.command()
def inspect(
    catalog: Annotated[str, typer.Argument(help="Folder of quantize, or any folder or Hub repo with a catalog.")],
    embeddings: Annotated[Path | None, typer.Option(help="Folder with the vectors of its items.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Dataset folder, for how the items are used.")] = None,
    out: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("inspection.html"),
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file for the numbers.")] = None,
) -> None:
    """What a catalog's SIDs are worth: a table, and a page with plots and with what codes mean."""
    from .artifacts import check_output_file, write_json
    from .pages.html import is_ours
    from .quantizers.inspection import inspect as run
    from .quantizers.inspection import is_inspection, print_inspection
    from .quantizers.inspection_page import write_inspection_page

    check_output_file(out / "inspection.html" if out.is_dir() else out, is_ours)
    if json_file is not None:
        check_output_file(json_file, is_inspection)
    found = run(catalog, embeddings, dataset)
    print_inspection(found)
    print(f"[inspect] wrote {write_inspection_page(out, found)}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, found.as_json())
        print(f"[inspect] wrote {json_file}")


@app.command(context_settings=_PARSED_BY_TRL)
def label(context: typer.Context) -> None:
    """Which mined interests tell what users take next. Options: --config FILE, --help."""
    from .arguments import parse_config
    from .interests.labelling import LabelConfig
    from .interests.labelling import label as run

    run(parse_config(LabelConfig, context.args, context.command_path))


@app.command(context_settings=_PARSED_BY_TRL)
def sft(context: typer.Context) -> None:
    """Supervised fine-tuning. Options: --config FILE, --from MODEL (go on training one of ours), --help."""
    from .sft import main as run

    arguments = ["--continue_from" if argument == "--from" else argument for argument in context.args]
    run(arguments, context.command_path)


@app.command(context_settings=_PARSED_BY_TRL)
def grpo(context: typer.Context) -> None:
    """GRPO with recommendation rewards. Options: --config FILE, --help."""
    from .grpo import main as run

    run(context.args, context.command_path)


@app.command(context_settings=_PARSED_BY_TRL)
def retrieve(context: typer.Context) -> None:
    """A dense retriever: items by ids, text, … and BSARec or SASRec. Options: --config FILE, --help."""
    from .retrieval import main as run

    run(context.args, context.command_path)


@app.command(context_settings=_PARSED_BY_TRL)
def rank(context: typer.Context) -> None:
    """Click prediction by ids and semantic IDs (DCN-V2). Options: --config FILE, --help."""
    from .ranking import main as run

    run(context.args, context.command_path)


@app.command(context_settings=_PARSED_BY_TRL)
def evaluate(context: typer.Context) -> None:
    """Metrics and report of a model, or of --predictions FILE. Options: --config FILE, --help."""
    from .arguments import parse_config
    from .evaluation import EvaluateConfig
    from .evaluation import evaluate as run

    run(parse_config(EvaluateConfig, context.args, context.command_path))


@app.command()
def blend(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo, of any form.")],
    retriever: Annotated[str, typer.Argument(help="Folder of `hf-gr retrieve` or Hub repo, of the same items.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model that ranks by both to.")],
    share: Annotated[float, typer.Option(help="Of the retriever in the score of an answer, above 0 to 1.")] = 0.5,
    rule: Annotated[str, typer.Option(help="Of mixing: shares, probabilities or log_probs.")] = "shares",
) -> None:
    """A generative model and a dense retriever as one model, without training."""
    from .blend import blend as run

    run(model, retriever, out, share=share, rule=rule)  # type: ignore[arg-type]  # it checks it


@app.command()
def remember(
    model: Annotated[str, typer.Argument(help="Model folder, updated in place, in one step; or Hub repo with --out.")],
    events: Annotated[
        Path, typer.Argument(help="Dataset folder to make the memory of, or Parquet file of new events to take in.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write to instead.")] = None,
    split: Annotated[str | None, typer.Option(help="Whose training part it is; default: the model's.")] = None,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Choose by lists without seen items.")] = False,
    users: Annotated[int, typer.Option(min=1, help="Validation users that choose what the memory counts.")] = 1000,
    num_beams: Annotated[int, typer.Option(min=10, help="Beams of their search.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Users at a time.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the users drawn.")] = 0,
) -> None:
    """A memory of training events beside a model, without training; and new events for a memory that is there."""
    from .remember import remember as run

    search = {"users": users, "num_beams": num_beams, "batch_size": batch_size, "seed": seed}
    run(model, events, out=out, split=split, exclude_seen=exclude_seen, **search)


@app.command()
def recommend(
    model: Annotated[str, typer.Argument(help="Model folder or Hub repo.")],
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, by commas or as JSON list; '' for a cold user.")
    ] = None,
    users: Annotated[Path | None, typer.Option(help="File of users with user_id and history, for a batch.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file that the batch writes.")] = None,
    query: Annotated[str | None, typer.Option(help="Words that say what is wanted.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Item ids that are no answer, likewise.")] = None,
    exclude_seen: Annotated[bool, typer.Option("--exclude-seen", help="Leave out what is in the history.")] = False,
    category: Annotated[list[str] | None, typer.Option(help="Only items of this category; may be repeated.")] = None,
    top_k: Annotated[int, typer.Option(help="Items wanted.")] = 10,
    num_beams: Annotated[int, typer.Option(help="Width of the search.")] = 50,
    max_per_category: Annotated[int | None, typer.Option(help="At most so many items of one category.")] = None,
    method: Annotated[str, typer.Option(help="beam, sample, gumbel or exhaustive.")] = "beam",
    score: Annotated[str, typer.Option(help="constrained, or model: among the whole vocabulary.")] = "constrained",
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    reflection: Annotated[float, typer.Option(help="Drop paths of a lower consistency, from 0 (off) to 1.")] = 0.0,
    graphs: Annotated[bool, typer.Option("--graphs", help="Replay searches as CUDA graphs, on a GPU.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of draws.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="What each scorer counts: '{semantic_id: 1, retriever: 0.5}'.")
    ] = None,
    mixing: Annotated[str | None, typer.Option(help="Rule of mixing: probabilities, log_probs or shares.")] = None,
    strict: Annotated[bool, typer.Option(help="Refuse unknown ids instead of skipping them.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show why: the path of codes, shared interests.")] = False,
) -> None:
    """Recommendations for one history (a table) or for a file of users (resumes after a kill).

    With a file, query and filters are for the users of whom it does not say otherwise.
    """
    wishes = {"exclude": _ids(exclude or ""), "exclude_seen": exclude_seen, "category": category or None}
    wishes["query"] = query or ""
    search = SearchConfig.of(
        top_k=top_k,
        num_beams=num_beams,
        method=method,
        score=score,
        temperature=temperature,
        reflection=reflection,
        graphs=graphs,
        seed=seed,
        mixture=Mixture.of(weights, mixing),  # type: ignore[arg-type]  # it checks it
    )
    settings: dict[str, Any] = {"search": search, "max_per_category": max_per_category, "strict": strict}
    if users is not None:
        if out is None or history is not None or explain:
            raise HfGrError("--users needs --out FILE.parquet, and neither --history nor --explain.")
        from .batch import recommend_batch

        print(f"[recommend] wrote {recommend_batch(model, users, out, defaults=wishes, **settings)}")
        return
    if history is None:
        raise HfGrError("give --history ID,ID (or '' for a cold user), or --users FILE --out FILE.")
    from transformers import pipeline

    from .vocabulary import SidVocabulary

    request = {"history": _ids(history)} | wishes
    folder = local_folder(model)
    SidVocabulary.load(folder)  # says it where the folder is no model, before transformers says less
    recommender = pipeline("generative-recommendation", model=str(folder))
    answers = recommender(request, explain=explain, **settings)
    shared = any("interests" in answer for answer in answers)  # of models that carry interests
    table = Table("#", "item", "title", "score", "SID", *(["because"] if shared else []))
    for rank, answer in enumerate(answers, start=1):
        sid = " ".join(map(str, answer["sid"]))
        because = [", ".join(entry["interest"] for entry in answer["interests"])] if shared else []
        item, title = plain(answer["item_id"]), plain(answer["title"], width=_TITLE)
        table.add_row(str(rank), item, title, f"{answer['score']:.3f}", sid, *map(plain, because))
    Console().print(table)
    if explain:
        for rank, answer in enumerate(answers, start=1):
            print(f"{rank:>2} {clean(_path(answer['path']))}")


@app.command("add-items")
def add_items(
    catalog: Annotated[
        str, typer.Argument(help="Folder of a catalog, model or retriever; updated in place, in one step.")
    ],
    items: Annotated[Path, typer.Argument(help="Parquet file: item_id, title, and what vectors are made of.")],
    vectors_file: Annotated[Path | None, typer.Option(help="Vectors of new items, if old ones are of a file.")] = None,
    images_root: Annotated[Path | None, typer.Option(help="Folder that paths of images start from.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to instead.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Also change columns of items already there.")] = False,
) -> None:
    """Add items, or bring removed ones back. Nobody else's SID moves; a model recommends them without training."""
    from .catalog_updates import add_items as run

    run(catalog, items, vectors_file=vectors_file, images_root=images_root, out=out, update=update)


@app.command("remove-items", context_settings={"ignore_unknown_options": True})  # ids such as -1023
def remove_items(
    catalog: Annotated[
        str, typer.Argument(help="Folder of a catalog, model or retriever; updated in place, in one step.")
    ],
    items: Annotated[str | None, typer.Argument(help="Item ids by commas, or as JSON list.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file with one item id a line.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to instead.")] = None,
) -> None:
    """Make items no answer any more. They keep their SIDs, and add-items brings them back."""
    from .catalog_updates import remove_items as run

    if (items is None) == (file is None):
        raise HfGrError("give item ids, or --file with one id a line.")
    ids = _ids(items or "") if file is None else _lines(file)
    if not ids:
        raise HfGrError(f"{'the list' if file is None else file} holds no item ids; give at least one.")
    run(catalog, ids, out=out)


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Model folder of sft, grpo or blend, or retriever of retrieve.")],
    repo: Annotated[str, typer.Argument(help="NAME/REPO on the Hub.")],
    private: Annotated[bool, typer.Option(help="Make the repo private.")] = False,
) -> None:
    """Upload a model with its catalog, pipeline code and card. The token comes from the environment or a login."""
    from .hub import push_to_hub

    print(f"[push] {push_to_hub(model, repo, private=private)}")


app.command()(grids.bench)
app.command(context_settings=_PARSED_BY_TRL | {"help_option_names": ["-h", "--help"]})(grids.tune)


def _ids(text: str) -> list[str]:
    """Item ids by commas, or as a JSON list, which is for ids that hold a comma or begin or end with a blank."""
    from .users import cell_ids

    if text.strip().startswith("["):
        return cell_ids(text)
    return [item_id.strip() for item_id in text.split(",") if item_id.strip()]


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")  # other signs that end a line may be in an id
    except (OSError, UnicodeDecodeError) as error:
        raise HfGrError(f"{file} cannot be read ({error}); give a text file with one item id a line.") from None
    return [line.removesuffix("\r") for line in lines if line.strip()]


def _path(steps: list[dict[str, Any]]) -> str:
    """Of each step codebook and code, three words and the confidence; then the consistency of all."""
    told = []
    for step in steps:
        words = [f'"{", ".join(step["words"][:3])}"'] if step["words"] else []
        told.append(" ".join([f"{step['codebook']}/{step['code']}", *words, _share(step["confidence"])]))
    consistency = steps[-1]["consistency"]
    return f"path: {' → '.join(told)}{'' if consistency is None else f' · consistency {_share(consistency)}'}"


def _share(value: float) -> str:
    """A number from 0 to 1 as `.41`."""
    return f"{value:.2f}".removeprefix("0")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. `--debug` anywhere on the line shows the traceback of a failure."""
    if arguments is None and [word for word in sys.argv[1:] if word != "--debug"][:1] == ["prepare"]:
        leave_after(lambda: main(sys.argv[1:]))
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments in ([], ["prepare"]):
        arguments.append("--help")
    with run_reporting_errors("--debug" in arguments):
        given = [argument for argument in arguments if argument != "--debug"]
        status = app(given, prog_name="hf-gr", standalone_mode=False)
        if status == INTERRUPTED:  # newer releases of typer catch Ctrl-C
            raise KeyboardInterrupt


if __name__ == "__main__":
    main()
