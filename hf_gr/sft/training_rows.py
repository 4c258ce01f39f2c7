"""What an SFT is taught: the rows of its tasks, mixed."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..catalog import SidCatalog
from ..dataset import Histories
from ..errors import HfGrError
from ..interests import Interests
from ..vocabulary import SidVocabulary
from .config import SidSFTConfig
from .interest_tasks import INTEREST_TASKS, build_of_interests
from .tasks import TASKS, build, mixture


def training_rows(
    args: SidSFTConfig,
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    interests: Interests | None = None,
) -> Dataset:
    """The rows of all tasks, mixed by their weights.

    Raises [`HfGrError`] where a task needs interests and there are none.
    """
    assert isinstance(args.tasks, dict)
    built = {
        name: build(
            name,
            train,
            catalog,
            vocabulary,
            tokenizer,
            steps=args.target_steps,
            decay=args.target_decay,
            trunk_weight=args.trunk_weight,
            seed=args.seed,
        )
        for name in args.tasks
        if name in TASKS
    }
    for name in (name for name in args.tasks if name in INTEREST_TASKS):
        if interests is None:
            raise HfGrError(f"task {name!r} needs interests; give those of `hf-gr mine` or `hf-gr label`.")
        built[name] = build_of_interests(name, interests, train, catalog, vocabulary, tokenizer, seed=args.seed)
    return mixture(built, args.tasks, args.seed)
