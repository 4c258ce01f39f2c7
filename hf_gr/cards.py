"""Cards: what a person wrote on one stays when it is written anew."""

import re


_LICENSE = re.compile(r"^license: (.*)$", re.MULTILINE)
_NO_LICENSE = "unknown"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)


def sections(card: str) -> list[tuple[str, str]]:
    """A card cut at its headings of the second level: heading and whole text of each part, the first heading empty.

    Lines of code blocks are no headings. The texts joined are the card.
    """
    parts: list[tuple[str, str]] = [("", "")]
    fenced = False
    for line in card.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            parts.append((line.strip(), ""))
        heading, text = parts[-1]
        parts[-1] = (heading, text + line)
    return parts


def merged_card(new: str, old: str) -> str:
    """A new card with the sections of an old one that it does not have behind its own, and the old card's license
    where the new one says that it is unknown."""
    there = {heading for heading, _ in sections(new)}
    own = [text.strip() for heading, text in sections(old) if heading not in there]
    if own:
        new = "\n\n".join([new.rstrip(), *own]) + "\n"
    licenses = [_LICENSE.search(front_matter(card)) for card in (new, old)]
    if licenses[0] and licenses[1] and licenses[0][1] == _NO_LICENSE:
        new = _LICENSE.sub(lambda _: licenses[1][0], new, count=1)  # type: ignore[index]
    return new


def front_matter(card: str) -> str:
    """The YAML of a card, with its last line break; empty where it has none."""
    found = _FRONT_MATTER.match(card)
    return found[1] if found else ""
