"""Tasks on mined interests (DeepInterestGR): they tie the LM's words, what people want and the SIDs together."""

from collections.abc import Callable

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..catalog import SidCatalog
from ..dataset import Histories
from ..errors import HfGrError
from ..interests import Interests
from ..vocabulary import SidVocabulary, text_ids
from .rows import lists
from .writing import filled, of_items, sids, text_answers, texts_of


INTERESTS = "\nInterests:"  # asks for interests after SIDs


def interest_to_sid(
    interests: Interests,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    max_text: int = 64,
) -> Dataset:
    """Why people want an item, to its SID: the trunk is one to three of its accepted interests, `<items>`.

    One row for every live item with interests. Which of them, and in which order, is drawn [ours].

    Args:
        interests: Mined ones.
        catalog, vocabulary, tokenizer: Of the model.
        seed: Of the draws.
        max_text: Tokens that the interests keep.
    """
    random = np.random.default_rng(seed)
    chosen = [
        [own[place] for place in random.permutation(len(own))[: random.integers(1, 4)]]
        for own in interests.accepted.of_items(catalog.item_ids)
    ]
    words = texts_of(tokenizer, [", ".join(some) for some in chosen], max_text)
    items = np.flatnonzero(catalog.live & filled(words))
    return of_items(items, lists([[*text, *vocabulary.opening] for text in words]), sids(vocabulary, catalog, items))


def sid_to_interest(
    interests: Interests,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text: int = 64,
) -> Dataset:
    """The reverse of [`interest_to_sid`]: the trunk is `<items>`, the codes, "Interests:"; the answer all accepted
    interests of the item, the most confident first, over the whole vocabulary."""
    own = interests.accepted.of_items(catalog.item_ids)
    words = texts_of(tokenizer, [", ".join(some) for some in own], max_text)
    items = np.flatnonzero(catalog.live & filled(words))
    marker = text_ids(tokenizer, INTERESTS)
    trunks = lists([[vocabulary.start_id, *sid, *marker] for sid in vocabulary.item_tokens(catalog).tolist()])
    return of_items(items, trunks, text_answers(words, [], tokenizer, items))


def user_interests_to_sid(
    interests: Interests,
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_text: int = 64,
) -> Dataset:
    """What a user wants, to the item taken next: the trunk is the user's accepted interests, `<items>`, and no history
    [ours]; the answer the last training event, which users' interests were mined without.

    One row for every user with interests whose last training event is a live item.
    """
    own = interests.accepted.of_users([str(user) for user in train.user_ids])
    words = texts_of(tokenizer, [", ".join(some) for some in own], max_text)
    told = np.flatnonzero(filled(words) & (train.lengths > 0))
    last = train.items[train.ptr[told + 1] - 1]
    told, last = told[catalog.live[last]], last[catalog.live[last]]
    trunks = lists([[*words[user], *vocabulary.opening] for user in told])
    rows = np.arange(len(told))
    return of_items(rows, trunks, sids(vocabulary, catalog, last))


INTEREST_TASKS: dict[str, Callable[..., Dataset]] = {
    task.__name__: task for task in (interest_to_sid, sid_to_interest, user_interests_to_sid)
}


def build_of_interests(
    name: str,
    interests: Interests,
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    max_text: int = 64,
) -> Dataset:
    """The rows of one of [`INTEREST_TASKS`] by its name.

    Raises:
        HfGrError: If there are none of these items or users.
    """
    of_model = (catalog, vocabulary, tokenizer)
    if name == "interest_to_sid":
        rows = interest_to_sid(interests, *of_model, seed=seed, max_text=max_text)
    elif name == "sid_to_interest":
        rows = sid_to_interest(interests, *of_model, max_text=max_text)
    else:
        rows = user_interests_to_sid(interests, train, *of_model, max_text=max_text)
    if not len(rows):
        raise HfGrError(f"task {name!r} finds no accepted interest that it could use; mine this very dataset.")
    return rows
