"""Equal content in several places, as Ollama, LM Studio and a folder may all hold one model: listed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from phitui.actions.context import Context
from phitui.config import plugin_folders
from phitui.domain.model import Artifact, Place
from phitui.store.hashes import HashStore


def once(context: Context, groups: Iterable[Sequence[Artifact]]) -> list[Artifact]:
    """One artifact for each content, with all its places and names.

    Each group holds the artifacts of one file (links to it). Two files are taken as equal if they have the same size
    and SHA-256, as told by their stores or remembered of a time when phitui read them; none is read for this.
    """
    digests = _digests(context, groups := [list(group) for group in groups])
    joined: dict[object, list[Artifact]] = {}
    for at, group in enumerate(groups):
        joined.setdefault(digests.get(at, at), []).extend(group)
    return [_one(context, group) for group in joined.values()]


def _digests(context: Context, groups: Sequence[Sequence[Artifact]]) -> dict[int, tuple[int, str]]:
    """(size, SHA-256) of groups by index, where they are known and may tell that two are equal."""
    told = {
        at: (artifact.size, artifact.sha256) for at, group in enumerate(groups) for artifact in group if artifact.sha256
    }
    sizes = {size for size, _ in told.values()}
    open_ = [at for at, group in enumerate(groups) if at not in told and group[0].size in sizes]
    if open_:
        with HashStore(context.paths.cache / "hashes.db") as store:
            for at in open_:
                try:
                    known = store.get(groups[at][0].path)
                except OSError:
                    continue
                if known is not None and known.size == groups[at][0].size:
                    told[at] = (known.size, known.sha256)
    return told


def _one(context: Context, group: Sequence[Artifact]) -> Artifact:
    """What stands for all: one in phitui's own folders, if there is one, for only that can be renamed and removed."""
    if len(group) == 1:
        return group[0]
    own = [folder.absolute() for folder in plugin_folders()]
    first = next((a for a in group if any(a.path.absolute().is_relative_to(folder) for folder in own)), group[0])
    places = {(a.path, a.name): Place(a.path, a.name, a.found_by, a.aliases) for a in reversed(group)}
    del places[first.path, first.name]
    described = next((artifact for artifact in group if artifact.architecture), first)
    return dataclasses.replace(
        first,
        architecture=described.architecture,
        scheme=first.scheme or described.scheme,
        sha256=next((artifact.sha256 for artifact in group if artifact.sha256), ""),
        also=tuple(reversed(places.values())),
    )
