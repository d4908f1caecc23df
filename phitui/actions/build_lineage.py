"""The lineage of a build: what it read, how it was asked, what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phitui.actions import lineage, provenance
from phitui.actions.context import Context
from phitui.domain.offers import JobContext, Offer, Quantizer
from phitui.domain.recipe import BuildStep, Recipe, ResultRecord, Traced
from phitui.domain.tensors import FilePlan, TensorSource
from phitui.errors import PhituiError
from phitui.store.hashes import sha256_of

if TYPE_CHECKING:
    from phitui.actions.build import BuildRequest


class BuildLineage:
    """Records one build. `seal` goes to the writer; `sha256` and `path` (of the recipe) are for the job's result."""

    def __init__(
        self,
        ctx: Context,
        build: BuildRequest,
        plan: FilePlan,
        source: TensorSource,
        quantizer: Quantizer,
        job: JobContext,
    ) -> None:
        self._ctx, self._build, self._plan, self._job = ctx, build, plan, job
        self._out = Path(build.out)
        self.sha256 = self.path = ""
        self._recorder: lineage.Recorder | None = None
        if not build.lineage:
            return
        self._remote = isinstance(source, Traced)
        self._offers: list[Offer] = [quantizer]
        files = lineage.option_files(quantizer.options, build.quantizer)
        self._converter, base = dict(build.converter), self._out.parent
        if source.origin.is_dir():
            from phitui.actions.source import converter_for

            converter = converter_for(ctx, source.origin)
            self._offers.insert(0, converter)
            files += lineage.option_files(converter.options, build.converter)
            self._converter = lineage.relative_options(converter.options, build.converter, base)
        self._quantizer = lineage.relative_options(quantizer.options, build.quantizer, base)
        try:
            found = provenance.provenance(source)
        except (OSError, PhituiError) as error:
            job.note(f"the lineage is not recorded: {error}")
            return
        self._recorder = lineage.Recorder(ctx, self._out, found, files)

    def __enter__(self) -> BuildLineage:
        return self

    def __exit__(self, *_: object) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def seal(self, sha256: str) -> None:
        """To be called with the file's SHA-256 before the file gets its name. Raises Cancelled only."""
        self.sha256 = sha256
        if self._recorder is None:
            return
        from phitui.gguf.header import file_size

        base = self._out.parent
        step = BuildStep(
            source=self._build.source if self._remote else lineage.relative(Path(self._build.source), base),
            scheme=self._plan.scheme,
            out=self._out.name,
            allow_nan=self._build.allow_nan,
            stream=self._remote,
        )
        recipe = Recipe(
            build=step,
            converter=self._converter,
            quantizer=self._quantizer,
            made=lineage.made_by(self._ctx, self._offers),
        )
        result = ResultRecord(
            self._out.name, file_size(self._plan), sha256, len(self._plan.tensors), round(self._plan.bits_per_weight, 4)
        )
        self._recorder.seal(recipe, result, self._job)

    def seal_existing(self) -> None:
        """The file is there already: read it."""
        if self._recorder is not None:
            size = self._out.stat().st_size

            def count(read: int) -> None:
                self._done = getattr(self, "_done", 0) + read
                self._job.progress(self._done, size, "checksum of the file")

            self.seal(sha256_of(self._out, count).sha256)

    def publish(self) -> None:
        """Give the recipe its name, and remember the file's hash."""
        if self._recorder is None:
            if self._build.overwrite:
                lineage.drop_stale(self._out)
            return
        made = self._recorder.publish(self._job)
        self.path = str(made or "")
        with lineage.hash_store(self._ctx) as store:
            store.put(self._out, self.sha256)
