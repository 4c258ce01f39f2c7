"""A generative model and a dense retriever as one model: `hf-gr blend`.

The two err differently, as one reads what items have in common and the other each item alone, so that together they
answer better than either. Known: ensembles, and generative beside dense retrieval (LIGER, Yang et al. 2024). Ours:
both travel in one repo of one set of weights, and each ranks the candidates of the other.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .artifacts import check_output, fingerprint, is_current, report, write_manifest, writing
from .catalog import SidCatalog
from .errors import HfGrError
from .hub import carry, save_repo
from .models import BSARecModel, take_retriever
from .offline import local_folder
from .provenance import joined
from .retrieval import Retriever
from .vocabulary import SidVocabulary


STAGE = "blend"


def blend(model: str | Path, retriever: str | Path, out: str | Path, *, share: float = 0.5) -> Path:
    """Writes a model that ranks by its own outputs and by a retriever's.

    Nothing is trained. Does nothing when `out` is up to date.

    Args:
        model: Folder or Hub repo of a model of `form: recursive`; a retriever that it carries already is replaced.
        retriever: Folder or repo of `hf-gr retrieve`, of the same items.
        out: Folder to write, of a model like the first.
        share: v, of the retriever in the score of an answer ([`~hf_gr.decoding.mixing.mixed_ranking`]), above 0 and
            up to 1; choose it on the validation part.

    Raises:
        HfGrError: On a share outside that range, a model of another form, or other items.
    """
    if not 0 < share <= 1:
        raise HfGrError(f"share is {share}; give a number above 0, up to 1.")
    source, other = local_folder(model), local_folder(retriever)
    settings, inputs = {"share": share}, {"model": fingerprint(source), "retriever": fingerprint(other)}
    paths: dict[str, str | Path] = {"model": model, "retriever": retriever}
    out = Path(out)
    if is_current(out, STAGE, settings, inputs):
        report(STAGE, paths, out, current=True)
        return out
    check_output(out, STAGE, [source, other])
    learned = joined(model, retriever)
    vocabulary, catalog = SidVocabulary.load(source), SidCatalog.load(source)
    found = Retriever.from_pretrained(other, device="cpu")
    lm = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    if not take_retriever(lm, _in_order(found, catalog, retriever), share):
        raise HfGrError(
            f"{model} is of form {vocabulary.form}; blend takes form: recursive, which scores any item in one step."
        )
    with writing(out, STAGE, [source, other]) as folder:
        save_repo(folder, lm, AutoTokenizer.from_pretrained(source), catalog, vocabulary, base_model=str(model))
        carry(source, folder)
        if learned is not None:
            learned.save(folder)
        write_manifest(folder, STAGE, settings, inputs)
    report(STAGE, paths, out)
    return out


def _in_order(retriever: Retriever, catalog: SidCatalog, name: str | Path) -> BSARecModel:
    """The retriever's model with its items in the order of the catalog."""
    row = {item_id: place for place, item_id in enumerate(retriever.item_ids)}
    missing = next((item_id for item_id in catalog.item_ids if item_id not in row), None)
    if missing is not None or len(row) != len(catalog):
        told = f"does not know item {missing!r}" if missing is not None else "knows items that the model does not"
        raise HfGrError(f"{name} {told}; train it on the dataset that the model's catalog was made of.")
    order = torch.tensor([*(row[item_id] for item_id in catalog.item_ids), len(row)])  # the start stays last
    with torch.no_grad():
        retriever.model.items.weight.copy_(retriever.model.items.weight[order])
    return retriever.model
