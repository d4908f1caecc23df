"""The exporter: the GGUF where LM Studio looks for it, without a second copy of its bytes where that can be."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from phitui.api import Availability, Bundle, BundleFile, BundleLink, ExportModel, UsageError, format_named
from phitui_lmstudio import folders
from phitui_lmstudio.options import LMStudioOptions, context_of, folder_name, made_folder, ratio
from phitui_lmstudio.preset import TURNS, preset, slug

README = "LMSTUDIO.md"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")


class LMStudio:
    """Places the model in LM Studio's folder, or in one of the same shape where there is no LM Studio here."""

    name = "lmstudio"
    title = "LM Studio (model folder, preset)"
    options: type = LMStudioOptions

    def available(self) -> Availability:
        return Availability()

    def preview(self, model: ExportModel, options: LMStudioOptions, out: Path) -> Bundle:
        """The files. Raises UsageError for names that LM Studio cannot have, and for what the model cannot do."""
        home = folders.home()
        folder = options.models.expanduser() if options.models else folders.models(home) if home else None
        place = folder.absolute() if folder else Path("models")
        publisher, repo = _where(model.path, place, options)
        files = [_file_name(file) for file in model.files]
        links = tuple(
            BundleLink(str(place / publisher / repo / name), file)
            for name, file in zip(files, model.files, strict=True)
        )
        key = f"{publisher}/{repo}/{files[0]}"
        load = _load(key, model, options)
        chosen = format_named(model.facts.chat_format)
        manual = chosen.name if not model.chat_template and chosen.name in TURNS else ""
        name = f"{slug(repo)}.preset.json"
        text = preset(repo, options, chosen.stops, manual)
        notes = _notes(model, options, folder, name, bool(manual))
        if folder is None:
            found = out / "models" / publisher / repo
            first = shlex.join(
                ["lms", "import", str(found / files[0]), "--user-repo", f"{publisher}/{repo}", "--hard-link"]
            )
            run: tuple[str, ...] = (first, load)
        else:
            run = (load,)
        readme = BundleFile(README, _readme(run, notes), "markdown")
        return Bundle((BundleFile(name, text, "json"), readme), run, tuple(notes), links)


def _where(path: Path, place: Path, options: LMStudioOptions) -> tuple[str, str]:
    """Publisher and repository. A model that LM Studio has already keeps its own, unless another is said."""
    own = path.absolute().parent
    if own.parent.parent == place and options.publisher == LMStudioOptions().publisher and not options.repo:
        return own.parent.name, own.name
    shard = _SHARD.fullmatch(path.name)
    stem = shard["stem"] if shard else path.name.removesuffix(".gguf")
    repo = options.repo or made_folder(stem)
    return folder_name("--publisher", options.publisher), folder_name("--repo", repo)


def _file_name(path: Path) -> str:
    """LM Studio takes .gguf only, and its names are paths of its own. Raises UsageError."""
    if not path.name.endswith(".gguf") or not path.name.isprintable() or path.name.startswith("."):
        raise UsageError(f"LM Studio does not list a file called {path.name!r}", "give it a name that ends in .gguf")
    return path.name


def _load(key: str, model: ExportModel, options: LMStudioOptions) -> str:
    words = ["lms", "load", key, "--context-length", str(context_of(options, model.facts))]
    share = ratio(options.layers, model.facts)
    words += ["--gpu", share] if share else []
    words += ["--identifier", options.identifier] if options.identifier else []
    return shlex.join([*words, "-y"])


def _notes(
    model: ExportModel, options: LMStudioOptions, folder: Path | None, preset_name: str, manual: bool
) -> list[str]:
    notes, facts = [], model.facts
    if folder is None:
        notes.append("LM Studio was not found here (--models says where its models are): move the folder, or import it")
    if not model.chat_template:
        how = "the preset spells the prompt out: choose it in the chat" if manual else "answers will be odd"
        notes.append(f"the model has no chat template, which LM Studio takes its prompts from; {how}")
    share = ratio(options.layers, facts)
    if share not in (None, "off", "max"):
        notes.append(
            f"{options.layers} of {facts.layers} layers are a share of {share}; how LM Studio rounds it is not known: "
            "--estimate-only on the same line says what it would take"
        )
    context, switch = context_of(options, facts), facts.rope.original_context
    if switch and context > switch:
        notes.append(f"a context above {switch} runs the model with its long rope factors, also for short prompts")
    elif facts.context_length > context:
        notes.append(f"the context is {context} of {facts.context_length} tokens: --ctx gives more, for more memory")
    notes.append(f"{preset_name} is a preset to import in LM Studio; context and layers are no part of presets")
    return notes


def _readme(run: tuple[str, ...], notes: list[str]) -> str:
    lines = "\n".join(run)
    return "# LM Studio\n\n```sh\n" + lines + "\n```\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
