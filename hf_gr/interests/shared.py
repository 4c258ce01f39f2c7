"""Why an item may suit a user: the interests that it shares with the user's history."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .table import Interests


class SharedInterests:
    """Accepted interests of items, ready to be compared."""

    def __init__(self, interests: Interests) -> None:
        accepted = interests.items.accepted.table
        pairs = zip(accepted["item_id"].to_pylist(), accepted["interest"].to_pylist(), strict=True)
        self._of: dict[str, set[str]] = {}
        for item_id, interest in pairs:
            self._of.setdefault(item_id, set()).add(interest)
        self._owners = Counter(interest for own in self._of.values() for interest in own)

    def between(self, history: Sequence[str], items: Sequence[str]) -> list[list[dict[str, Any]]]:
        """What each of some items shares with a history.

        Args:
            history: Item ids, oldest first.
            items: Item ids.

        Returns:
            For each of `items` a list of `{"interest", "items"}`, first the interest that the fewest items have, which
            tells most; its `items` are the ids in the history that have it, the latest first. Items without interests
            share none.
        """
        seen = list(dict.fromkeys(reversed(history)))
        lists = []
        for item in items:
            own = sorted(self._of.get(item, ()), key=lambda interest: (self._owners[interest], interest))
            found = [(interest, [other for other in seen if interest in self._of.get(other, ())]) for interest in own]
            lists.append([{"interest": interest, "items": others} for interest, others in found if others])
        return lists
