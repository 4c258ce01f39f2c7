"""A generative model and a dense retriever as one model: `hf-gr blend`.

The two err differently, as one reads what items have in common and the other each item alone, so that together they
answer better than either. Known: ensembles, and generative beside dense retrieval (LIGER, Yang et al. 2024). Ours:
both travel in one repo, and each ranks the candidates of the other.
"""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .artifacts import check_output, fingerprint, is_current, report, write_manifest, writing
from .catalog import SidCatalog
from .errors import HfGrError
from .hub import carry, carry_scorers, save_repo, say_ranking
from .models import RetrieverModel, TowersModel, without_retriever
from .offline import local_folder
from .provenance import joined
from .retrieval import Retriever
from .scorers import RetrieverScorer, save_scorers
from .scorers.own import own_mixture
from .scorers.saved import read_mixture
from .search_config import SEMANTIC_ID, MixingRule, Mixture
from .vocabulary import SidVocabulary


STAGE = "blend"


def blend(
    model: str | Path,
    retriever: str | Path,
    out: str | Path,
    *,
    share: float = 0.5,
    rule: MixingRule = "shares",
) -> Path:
    """Writes a model that ranks by its own outputs and by a retriever's.

    Nothing is trained. Does nothing when `out` is up to date.

    Args:
        model: Folder or Hub repo of a model of any form; a retriever that it carries already is replaced.
        retriever: Folder or repo of `hf-gr retrieve`, of the same items.
        out: Folder to write, of a model like the first.
        share: v, of the retriever in the score of an answer ([`~hf_gr.decoding.mixing.mixed_ranking`]), above 0 and
            up to 1; choose it on the validation part. What ranks otherwise counts 1 − v together, each in proportion
            to what it counted before.
        rule: By which scores are mixed ([`Mixture`]).

    Raises:
        HfGrError: On a share outside that range, another rule, or other items.
    """
    if not 0 < share <= 1:
        raise HfGrError(f"share is {share}; give a number above 0, up to 1.")
    source, other = local_folder(model), local_folder(retriever)
    mixture = Mixture({SEMANTIC_ID: 1 - share, "retriever": share}, rule)
    settings, inputs = {"share": share, "rule": rule}, {"model": fingerprint(source), "retriever": fingerprint(other)}
    paths: dict[str, str | Path] = {"model": model, "retriever": retriever}
    out = Path(out)
    if is_current(out, STAGE, settings, inputs):
        report(STAGE, paths, out, current=True)
        return out
    check_output(out, STAGE, [source, other])
    learned = joined(model, retriever)
    vocabulary, catalog = SidVocabulary.load(source), SidCatalog.load(source)
    found = Retriever.from_pretrained(other, device="cpu")
    lm = without_retriever(AutoModelForCausalLM.from_pretrained(source, dtype="auto"))
    mixture = replace(mixture, weights=_shared(read_mixture(source, catalog) or own_mixture(lm), share))
    scorers = {"retriever": RetrieverScorer(_in_order(found, catalog, retriever), other)}
    with writing(out, STAGE, [source, other]) as folder:
        save_repo(folder, lm, AutoTokenizer.from_pretrained(source), catalog, vocabulary, base_model=str(model))
        carry(source, folder)
        carry_scorers(source, folder)
        save_scorers(folder, catalog, scorers, mixture)
        say_ranking(folder)
        if learned is not None:
            learned.save(folder)
        write_manifest(folder, STAGE, settings, inputs)
    report(STAGE, paths, out)
    return out


def _shared(mixture: Mixture | None, share: float) -> dict[str, float]:
    """Weights with a retriever's share, the others in proportion to what they are."""
    weights = {SEMANTIC_ID: 1.0} if mixture is None else dict(mixture.weights)
    others = {name: weight for name, weight in weights.items() if name != "retriever" and weight > 0}
    total = sum(others.values())
    if not others:  # it ranked by a retriever alone
        others, total = {SEMANTIC_ID: 1.0}, 1.0
    return {name: (1 - share) * weight / total for name, weight in others.items()} | {"retriever": share}


def _in_order(retriever: Retriever, catalog: SidCatalog, name: str | Path) -> RetrieverModel:
    """The retriever's model with its items in the order of the catalog."""
    row = {item_id: place for place, item_id in enumerate(retriever.item_ids)}
    missing = next((item_id for item_id in catalog.item_ids if item_id not in row), None)
    if missing is not None or len(row) != len(catalog):
        told = f"does not know item {missing!r}" if missing is not None else "knows items that the model does not"
        raise HfGrError(f"{name} {told}; train it on the dataset that the model's catalog was made of.")
    order = torch.tensor([*(row[item_id] for item_id in catalog.item_ids), len(row)])  # the start stays last
    model = retriever.model
    if isinstance(model, TowersModel):
        model.reorder(order[:-1])
        return model
    with torch.no_grad():
        model.items.weight.copy_(model.items.weight[order])
    return model
