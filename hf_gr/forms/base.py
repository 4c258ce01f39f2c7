"""What a form of semantic ID is: its grammar, how it reads histories and writes answers, what it can be taught."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from ..catalog import SidCatalog
from ..errors import HfGrError
from ..grammar import SidGrammar, TrieGrammar
from ..options import check_idle


class Tokens(Protocol):
    """The token ids that a form writes with: a [`~hf_gr.vocabulary.SidVocabulary`].

    Attributes:
        code_ids: Token ids of the codes, one list of K_l per level.
        think_ids: Token ids of the L thinking tokens.
        first_item_id: Id of the catalog's first item, of models with an item table.
    """

    @property
    def code_ids(self) -> Sequence[Sequence[int]]: ...
    @property
    def think_ids(self) -> Sequence[int]: ...
    @property
    def first_item_id(self) -> int | None: ...


class Form:
    """One form of semantic ID. A form holds no state: `FORMS` has one object of each.

    The methods take SIDs as tokens: `codes`, int64 [n, L], one column a level, in the catalog's order of levels. They
    move them and compute nothing of them: in training rows an integer that stands for the token takes its place
    ([`~hf_gr.references`]). What stands here is the flat form: a subclass overrides what it does otherwise.

    Attributes:
        thinks: Whether thinking tokens are written, which thinking heads can supervise.
        sets: Whether the codes may come in any order, which trainings choose; grammar: an
            [`~hf_gr.grammar.UnorderedGrammar`].
        item_table: Whether the model reads an item as one position, through a row of its own; then `first_item_id` is
            set.
        trunk_predicts: Whether the history's own codes can be taught beside the answers (`trunk_weight`): answers
            stand on branches, and their codes in the order of the levels follow the grammar's steps too.
        full_loss: Whether the softmax of training can be over the full vocabulary.
        tasks: Tasks of SFT that can be learned; `None`: all.
    """

    thinks: ClassVar[bool] = False
    sets: ClassVar[bool] = False
    item_table: ClassVar[bool] = False
    trunk_predicts: ClassVar[bool] = False
    full_loss: ClassVar[bool] = True
    tasks: ClassVar[Sequence[str] | None] = None

    def grammar(self, tokens: Tokens, catalog: SidCatalog) -> SidGrammar:
        """Returns what may be written: the live items of a catalog."""
        return build_grammar(TrieGrammar, tokens, catalog)

    def events(self, tokens: Tokens, items: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Returns how histories hold items (rows of the catalog, int64 [n]): int64 [n, w], each as w tokens."""
        return codes

    def ending(self, tokens: Tokens) -> tuple[int, ...]:
        """Returns the tokens that end every prompt. Answers begin with them: they are what the prompt has already."""
        return ()

    def answers(self, tokens: Tokens, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns how items are written.

        Returns:
            Tokens int64 [n, A] and labels int64 [n, A]: the same, but −100 where a token is given and not predicted.
            Where no token is read back, tokens are [n, 0] and labels alone say what is predicted.
        """
        return codes, codes

    def check_model(self, name: str, config: Any) -> None:
        """Raises [`HfGrError`] on settings of a model that mean nothing in this form.

        Args:
            name: Of the form, for the message.
            config: With the fields `thinking`, `heads` and `recursion` of [`~hf_gr.sft.SidModelConfig`].
        """
        if config.recursion is not None and not self.item_table:
            raise HfGrError(f"recursion is set, but form is {name!r} and has none; set form: recursive.")
        if config.thinking is not None and not self.thinks:
            raise HfGrError(f"thinking is set, but form is {name!r} and has no thinking tokens; set form: stepwise.")

    def check_training(self, name: str, config: Any) -> None:
        """Raises [`HfGrError`] on settings of a training that mean nothing in this form.

        Args:
            name: Of the form, for the message.
            config: With the fields `tasks`, `loss`, `trunk_weight`, `confident_orders` and `set_credit` of
                [`~hf_gr.sft.SidSFTConfig`].
        """
        if self.tasks is not None:
            for task in (task for task in config.tasks if task not in self.tasks):
                raise HfGrError(f"task {task!r} is not for form: {name}; it learns {', '.join(self.tasks)}.")
        if config.loss == "full" and not self.full_loss:
            raise HfGrError(f"loss is 'full', which form: {name} does not have; leave it out.")
        needs = {
            "trunk_weight": (self.trunk_predicts, "answers on branches: form stepwise, upfront or unordered"),
            "confident_orders": (self.sets, "form: unordered"),
            "set_credit": (self.sets, "form: unordered"),
        }
        check_idle(config, needs)


def build_grammar(
    kind: Callable[..., SidGrammar], tokens: Tokens, catalog: SidCatalog, *, think_ids: Sequence[int] = ()
) -> SidGrammar:
    """Returns a grammar of the live items of a catalog; on a shared SID the more popular item comes first.

    Raises [`HfGrError`] on a catalog of several views, of which a grammar would silently take the first.
    """
    if catalog.more_codes is not None:
        raise HfGrError(
            f"the catalog has {len(catalog.views)} views of codes, and a model writes one; take catalog.view(NUMBER)."
        )
    live = np.flatnonzero(catalog.live)
    return kind(catalog.codes, tokens.code_ids, think_ids=think_ids, popularity=catalog.popularity, items=live)
