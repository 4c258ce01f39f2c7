"""Rows of items: batches are those of rows of tokens, and codes may change while a model trains."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import tiny_lm, tiny_tokenizer
from tiny_runs import TinyData, distinct_catalog, sft_configs, tiny_data
from transformers import TrainerCallback, pipeline

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Cases, Histories, InteractionDataset
from hf_gr.errors import HfGrError
from hf_gr.forms import FORMS
from hf_gr.hub import save_repo
from hf_gr.interests import Interests
from hf_gr.interests.table import SCHEMA
from hf_gr.models import last_hidden
from hf_gr.packing import pack
from hf_gr.references import FIRST, references, resolved
from hf_gr.sft import SidSFTConfig, SidSFTTrainer, sft, starting_model
from hf_gr.sft.fitting import fitting
from hf_gr.sft.interest_tasks import INTEREST_TASKS
from hf_gr.sft.loss import answer_loss
from hf_gr.sft.rows import RowBatches
from hf_gr.sft.tasks import TASKS, held_out
from hf_gr.sft.training_rows import training_rows
from hf_gr.sft.writing import RowVocabulary
from hf_gr.splits import Split
from hf_gr.validation import Validation
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


def with_codes(catalog: SidCatalog, seed: int) -> SidCatalog:
    """The same items with random codes, so that some share a semantic ID."""
    return replace(catalog, codes=np.random.default_rng(seed).integers(0, 4, catalog.codes.shape))


def histories_of(lengths: list[int]) -> Histories:
    random, total = np.random.default_rng(0), sum(lengths)
    users = np.array([f"u{user}" for user in range(len(lengths))], dtype=object)
    behaviors = random.choice(np.array(["view", "buy"], dtype=object), total)
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(users, ptr, random.integers(0, len(FIRST_CATALOG), total), np.arange(total), behaviors=behaviors)


def mined(**about: str) -> dict:
    return {"item_id": None, "user_id": None, "interest": "sleep", "confidence": 1.0, "label": True} | about


FIRST_CATALOG = distinct_catalog()
LATER = with_codes(FIRST_CATALOG, 3)
SHARED = with_codes(FIRST_CATALOG, 1).removed(["i002", "i010"])
OTHER = with_codes(SHARED, 2)
HISTORIES = histories_of([1, 2, 5, 9, 10, 11, 30])
WANTED = [mined(item_id="i000"), mined(item_id="i003"), mined(user_id="u2"), mined(user_id="u3")]
MINED = Interests(pa.Table.from_pylist(WANTED, SCHEMA))


def rows_and_rows(form: str, catalog: SidCatalog, **settings):
    """Rows of tokens and of items of all tasks that the form can learn, as the trainer has them."""
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    context = {"context": "behavior", "histories": HISTORIES}
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5, form=form, **context)
    vocabulary = replace(vocabulary, first_item_id=5000)
    names = vocabulary.sid_form.tasks or [*TASKS, *INTEREST_TASKS]
    args = SidSFTConfig("unused", tasks=dict.fromkeys(names, 1), use_cpu=True, bf16=False, **settings)
    both = []
    for kind in (vocabulary, RowVocabulary.of(vocabulary)):
        rows = training_rows(args, HISTORIES, catalog, kind, tokenizer, MINED)
        cases = Cases(HISTORIES, np.arange(len(HISTORIES)))
        both.append((fitting(rows, model, args), held_out(cases, catalog, kind)))
    return model, vocabulary, both


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{}, {"trunk_weight": 0.5}, {"sub_histories": True}, {"max_length": 130}])
def test_batches_of_items_are_those_of_tokens(form, settings):
    """Bit for bit, all tasks, fitted and held out; and those of other codes are that of rows written with them."""
    if "trunk_weight" in settings and not FORMS[form].trunk_predicts:
        pytest.skip("answers of this form are the trunk's")
    _, vocabulary, (tokens, items) = rows_and_rows(form, SHARED, **settings)
    _, _, (others, _) = rows_and_rows(form, OTHER, **settings)
    random = np.random.default_rng(0)
    for part in range(2):  # of training, held out
        assert max(max(row) for row in items[part]["input_ids"]) >= FIRST or form == "recursive"
        for _ in range(4):
            order = random.permutation(len(items[part]))[:16].tolist()
            options = {"think_ids": vocabulary.think_ids, "crowd": bool(random.random() < 0.5)}
            packed = pack(RowBatches(items[part]).__getitems__(order), **options)
            for catalog, rows in ((SHARED, tokens), (OTHER, others)):
                table = torch.from_numpy(vocabulary.item_tokens(catalog))
                found, expected = resolved(packed, table), pack(RowBatches(rows[part]).__getitems__(order), **options)
                for name, value in vars(expected).items():
                    ours = vars(found)[name]
                    assert ours.dtype == value.dtype and torch.equal(ours, value), name


@pytest.mark.parametrize("form", ["flat", "stepwise", "unordered"])
def test_several_steps_have_the_same_loss_and_gradients(form):
    """Rows of items may put a later target on a branch, though the trunk has its tokens by chance."""
    model, vocabulary, (tokens, items) = rows_and_rows(form, SHARED, target_steps=3)
    table, grammar, results = torch.from_numpy(vocabulary.item_tokens(SHARED)), vocabulary.grammar(SHARED), []
    order = list(range(0, len(items[0]), 2))
    for rows in (tokens, items):
        packed = resolved(pack(RowBatches(rows[0]).__getitems__(order), think_ids=vocabulary.think_ids), table)
        model.zero_grad()
        output = answer_loss(model, last_hidden(model, **packed.inputs("sdpa", model.dtype)), packed, grammar)
        output.loss.backward()
        results.append([output.loss.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_references_are_above_tokens_and_of_one_item_and_level():
    found = references(np.array([0, 2]), 3)
    assert found.tolist() == [[FIRST, FIRST + 1, FIRST + 2], [FIRST + 6, FIRST + 7, FIRST + 8]]
    packed = pack([{"input_ids": [3, FIRST + 7, 4], "attach": [3], "answers": [[FIRST, 9]], "labels": [[-100, 9]],
                    "weights": [1.0]}])  # fmt: skip
    read = resolved(packed, torch.arange(100, 109).view(3, 3))
    assert (read.input_ids.tolist(), read.labels.tolist()) == ([[3, 107, 4, 100]], [[9]])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("exchange"))


class Exchange(TrainerCallback):
    """Gives the items other codes after a step."""

    def __init__(self, trainer: SidSFTTrainer, step: int, catalog: SidCatalog):
        self.trainer, self.step, self.catalog = trainer, step, catalog

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.trainer.catalog = self.catalog


def trainer_of(data, folder, catalog=FIRST_CATALOG, made=False, **changes) -> tuple[SidSFTTrainer, Split]:
    """A trainer on histories or, `made`, on rows of tokens; its model is the same whatever the catalog."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 8}
    settings |= {"eval_strategy": "steps", "eval_steps": 4}
    _, start, args = sft_configs(**data.sft(folder, **settings | {"lr_scheduler_type": "constant"} | changes))
    split = InteractionDataset.load(data.dataset).aligned(catalog.item_ids).split()
    model, tokenizer, vocabulary = starting_model(start, FIRST_CATALOG, split.train, args.seed)
    vocabulary = replace(vocabulary, catalog_fingerprint=catalog.fingerprint)
    train = training_rows(args, split.train, catalog, vocabulary, tokenizer) if made else split.train
    of_model = {"catalog": catalog, "vocabulary": vocabulary, "processing_class": tokenizer}
    return SidSFTTrainer(model, args, **of_model, train_dataset=train, eval_dataset=split.validation), split


def losses_of(trainer: SidSFTTrainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def weights_of(trainer: SidSFTTrainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.model.parameters()]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("form", ["flat", "unordered", "recursive"])
def test_a_training_on_histories_is_that_on_rows_of_tokens(data, tmp_path, form):
    ours, theirs = (trainer_of(data, tmp_path / str(made), made=made, form=form)[0] for made in (False, True))
    ours.train(), theirs.train()
    assert losses_of(ours) == losses_of(theirs) and equal(weights_of(ours), weights_of(theirs))
    assert ours.evaluate()["eval_loss"] == theirs.evaluate()["eval_loss"]


@pytest.mark.parametrize("form", ["flat", "stepwise", "unordered"])
def test_after_an_exchange_training_is_that_on_rows_of_the_new_codes(data, tmp_path, form):
    """Steps 1 and 2 are those of the first codes, the others those of a run on tokens that goes on with the new."""
    ours, split = trainer_of(data, tmp_path / "ours", form=form)
    ours.add_callback(Exchange(ours, 2, LATER))
    ours.train()
    before, _ = trainer_of(data, tmp_path / "theirs", made=True, form=form)
    before.train()
    after, _ = trainer_of(data, tmp_path / "theirs", LATER, made=True, form=form)
    after.train(str(tmp_path / "theirs" / "checkpoint-2"))
    expected = {step: losses_of(before if step <= 2 else after)[step] for step in range(1, 5)}
    assert losses_of(ours) == expected and losses_of(before)[3] != expected[3]
    assert equal(weights_of(ours), weights_of(after))
    figures, theirs = ours.evaluate(), after.evaluate()
    assert all(figures[name] == theirs[name] for name in ("eval_loss", "eval_NDCG@10", "eval_HR@50"))
    assert ours.vocabulary.catalog_fingerprint == ours.catalog.fingerprint == LATER.fingerprint
    expected = Validation.of_args(split.validation, LATER, ours.vocabulary, ours.args)
    assert sorted(ours.validation.prompts) == sorted(expected.prompts)
    save_repo(tmp_path / "model", ours.model, ours.processing_class, ours.catalog, ours.vocabulary)
    items = pipeline("generative-recommendation", str(tmp_path / "model"))([FIRST_CATALOG.item_ids[3]], top_k=5)
    assert len(items) == 5


def test_checkpoints_keep_their_codes(data, tmp_path):
    """A run that goes on from either side of the exchange has that side's catalog, and so has the best checkpoint."""
    whole, _ = trainer_of(data, tmp_path / "run", max_steps=6)
    whole.add_callback(Exchange(whole, 3, LATER))
    whole.train()
    assert not (tmp_path / "run" / "checkpoint-2" / "catalog").exists()
    resumed, _ = trainer_of(data, tmp_path / "run", max_steps=6)
    resumed.train(str(tmp_path / "run" / "checkpoint-4"))
    assert resumed.catalog.fingerprint == resumed.vocabulary.catalog_fingerprint == LATER.fingerprint
    assert equal(weights_of(resumed), weights_of(whole)) and losses_of(resumed)[6] == losses_of(whole)[6]
    whole.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-2")
    whole._load_best_model()
    assert whole.catalog is FIRST_CATALOG and torch.equal(
        whole.item_tokens, torch.from_numpy(whole.vocabulary.item_tokens(FIRST_CATALOG))
    )
    whole.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-4")
    whole._load_best_model()
    assert whole.catalog.fingerprint == whole.vocabulary.catalog_fingerprint == LATER.fingerprint


def test_exchanges_that_cannot_be_are_refused(data, tmp_path):
    trainer, _ = trainer_of(data, tmp_path / "a")
    sizes = replace(LATER, codebook_sizes=(4, 4, 5))
    reversed_items = replace(LATER, items=LATER.items.take(pa.array(np.arange(len(LATER))[::-1])))
    for other, what in ((sizes, "codebook_sizes"), (reversed_items, "items"), (LATER.removed(["i000"]), "live items")):
        with pytest.raises(HfGrError, match=f"has other {what} than the training's"):
            trainer.catalog = other
    assert trainer.catalog is FIRST_CATALOG
    for settings, match in (
        ({"made": True}, "rows that were made already; give it histories"),
        ({"form": "recursive"}, "form recursive keeps the codes in the model"),
    ):
        trainer, _ = trainer_of(data, tmp_path / "b", **settings)
        with pytest.raises(HfGrError, match=match):
            trainer.catalog = LATER


def test_a_run_of_the_stage_writes_the_catalog_of_its_end(tmp_path, monkeypatch):
    data = tiny_data(tmp_path)
    first = SidCatalog.load(data.catalog)
    other = replace(first, codes=np.roll(first.codes, 5, axis=0))
    take = SidSFTTrainer.train

    class Exchange(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.trainer.catalog = other

    def train(self, *args, **kwargs):
        callback = Exchange()
        callback.trainer = self
        self.add_callback(callback)
        return take(self, *args, **kwargs)

    monkeypatch.setattr(SidSFTTrainer, "train", train)
    model = sft(*sft_configs(**data.sft(tmp_path / "run", max_steps=4)))
    assert SidCatalog.load(model).fingerprint == other.fingerprint != first.fingerprint
    assert SidVocabulary.load(model).catalog_fingerprint == other.fingerprint
