"""A checkpoint on the Hub is described, planned and written exactly as one on this machine."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phitui import hub as hub_module
from phitui.actions import models, remote
from phitui.actions.build import BuildRequest, preview
from phitui.actions.context import Context
from phitui.actions.forecast import planned_file
from phitui.actions.schemes import find_scheme
from phitui.actions.source import open_source
from phitui.domain import options
from phitui.domain.tensors import FilePlan, RemoteExtent
from phitui.errors import Cancelled, InvalidFile, PhituiError, SourceChanged, UnsupportedModel, UsageError
from phitui.gguf import chunks, readahead
from phitui.gguf.manifest import MANIFEST, read_manifest
from phitui.gguf.writer import WriteResult, write_gguf
from phitui.testing.checkpoints import converter_options, write_checkpoint
from phitui.testing.hub_server import COMMIT, Hub, hub_server


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks of a tiny checkpoint."""
    monkeypatch.setattr(readahead, "BLOCK", 300_000)
    monkeypatch.setattr(readahead, "WINDOW", 1_200_000)
    monkeypatch.setattr(readahead, "BRIDGE", 4_000)
    monkeypatch.setattr(chunks, "COPY_BYTES", 70_000)
    monkeypatch.setattr(chunks, "FLOAT_VALUES", 20_000)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def local(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    spec = getattr(request, "param", {"shards": 2, "card": True})
    return write_checkpoint(tmp_path / "local" / "phi", **spec)


@pytest.fixture
def hub(local: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(local) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def write(context: Context, source: str, scheme: str, out: Path, job: Any = None, **values: Any) -> WriteResult:
    quantizer = find_scheme(context, scheme)[0]
    chosen = options.build(quantizer.options, {})
    plan = plan_of(context, source, scheme, **values)
    return write_gguf(plan, out, quantizer.encoder(plan, chosen), job, overwrite=True)


def plan_of(context: Context, source: str, scheme: str, **values: Any) -> FilePlan:
    quantizer, found = find_scheme(context, scheme)
    return quantizer.plan(open_source(context, source, values), [found.name], options.build(quantizer.options, {}))[
        found.name
    ]


def weights(hub: Hub) -> list[str]:
    return sorted(name for name in hub.files if name.endswith(".safetensors"))


def fetched_once(hub: Hub) -> None:
    """No byte of a shard is fetched twice, but for its header, which is read before."""
    for name in weights(hub):
        ranges = sorted(hub.ranges(name)[1:])
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(ranges)), (name, ranges)


SPECS: list[tuple[dict[str, Any], str]] = [
    ({"shards": 2, "card": True}, "BF16"),
    ({"shards": 3, "dtype": "F32", "tied": True, "rope": "longrope", "partial_rotary": 0.75}, "F16"),
    ({"family": "phi2", "dtype": "F16", "tokenizer": "bpe"}, "AUTO"),
    ({"shards": 2, "family": "phimoe"}, "BF16"),
    ({"shards": 2, "family": "phimoe"}, "F32"),
    ({"family": "phi4mm"}, "BF16"),
    ({"family": "phi3v", "shards": 2}, "F16"),
]


@pytest.mark.parametrize(("local", "scheme"), SPECS, indirect=["local"])
def test_the_same_bytes(hub: Hub, local: Path, scheme: str, tmp_path: Path, context: Context) -> None:
    values = converter_options("bpe" if (local / "tokenizer.json").exists() else "spm")
    written = write(context, "acme/phi", scheme, tmp_path / "streamed.gguf", **values)
    write(context, str(local), scheme, tmp_path / "built.gguf", **values)
    assert (tmp_path / "streamed.gguf").read_bytes() == (tmp_path / "built.gguf").read_bytes()
    fetched_once(hub)
    assert written.remote is not None
    assert written.remote.fetched <= sum(map(hub.size, weights(hub)))
    config = json.loads((local / "config.json").read_text())
    if config["architectures"][0] in ("Phi3ForCausalLM", "PhiForCausalLM", "PhiMoEForCausalLM"):
        assert written.remote.verified == tuple(weights(hub))


def test_the_vision_part(tmp_path: Path, online: None, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    local = write_checkpoint(tmp_path / "local" / "phi", family="phi4v", tokenizer="bpe")
    with hub_server(local) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        write(context, "acme/phi", "F16", tmp_path / "streamed.gguf", mmproj=True)
    write(context, str(local), "F16", tmp_path / "built.gguf", mmproj=True)
    assert (tmp_path / "streamed.gguf").read_bytes() == (tmp_path / "built.gguf").read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_a_line_that_breaks_all_the_time(hub: Hub, local: Path, seed: int, tmp_path: Path, context: Context) -> None:
    remote.look(context, "acme/phi")
    hub.trouble.cut_all = 111_111 + 10_000 * seed
    hub.trouble.expire_after = 3
    hub.trouble.store = [(503, {}), (429, {"Retry-After": "0.2"}), (500, {})]
    write(context, "acme/phi", "BF16", tmp_path / "streamed.gguf")
    write(context, str(local), "BF16", tmp_path / "built.gguf")
    assert (tmp_path / "streamed.gguf").read_bytes() == (tmp_path / "built.gguf").read_bytes()


class Stopper:
    """A job that is cancelled once so many bytes are done."""

    def __init__(self, after: int) -> None:
        self.after, self.notes = after, []  # type: ignore[var-annotated]

    def progress(self, done: int, total: int, text: str = "") -> None:
        if done > self.after:
            raise Cancelled

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None:
        """Never."""


def test_stopped_and_gone_on(hub: Hub, local: Path, tmp_path: Path, context: Context) -> None:
    out = tmp_path / "streamed.gguf"
    hub.trouble.rate = 1_000_000
    with pytest.raises(Cancelled):
        write(context, "acme/phi", "BF16", out, Stopper(1_000_000))
    assert not out.exists()
    hub.trouble.rate = 0
    written = write(context, "acme/phi", "BF16", out, Stopper(1 << 60))
    write(context, str(local), "BF16", tmp_path / "built.gguf")
    assert out.read_bytes() == (tmp_path / "built.gguf").read_bytes()
    assert written.resumed_bytes > 0
    assert written.remote is not None
    assert written.remote.unverified == (weights(hub)[0],)


def test_another_commit_is_not_gone_on_with(hub: Hub, tmp_path: Path, context: Context) -> None:
    out = tmp_path / "streamed.gguf"
    plan = plan_of(context, "acme/phi", "BF16")
    hub.trouble.lie[weights(hub)[1]] = "0" * 64
    with pytest.raises(SourceChanged):
        write_gguf(plan, out)
    assert not list(tmp_path.glob("streamed*"))


def test_a_gone_network_leaves_what_is_written(
    hub: Hub, tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of(context, "acme/phi", "BF16"), tmp_path / "streamed.gguf"
    monkeypatch.setattr("phitui.gguf.remote.PATIENCE", 0.3)
    hub.trouble.answers["/acme/phi/resolve/" + COMMIT + "/model-00002"] = (503, {})
    job = Stopper(1 << 60)
    with pytest.raises(PhituiError, match="answers 503") as caught:
        write_gguf(plan, out, job=job)
    assert "resume" in caught.value.hint
    assert (tmp_path / "streamed.gguf.partial.journal").exists()
    assert any("asking again" in note for note in job.notes)
    hub.trouble.answers.clear()
    assert write_gguf(plan, out).resumed_bytes > 0


def test_what_is_kept_in_the_cache(hub: Hub, local: Path, context: Context) -> None:
    found = remote.look(context, "acme/phi@main")
    assert (found.pinned, found.weights) == (f"acme/phi@{COMMIT}", sum(map(hub.size, weights(hub))))
    assert found.directory.name == "phi"
    kept = {path.name for path in found.directory.iterdir()}
    headers = {f"{name}.header" for name in weights(hub)}
    assert kept == {path.name for path in local.iterdir()} - set(weights(hub)) | headers | {MANIFEST}
    assert remote.hub_id(found.directory) == found.pinned
    assert remote.hub_id(local) == ""
    assert found.parameters == sum(tensor.elements for tensor in open_source(context, str(local)).tensors)
    asked = len(hub.asked)
    assert remote.look(context, found.pinned).fetched == 0
    assert len(hub.asked) == asked
    shutil.rmtree(context.paths.cache)
    assert len(open_source(context, found.pinned).tensors) > 0


def test_facts_and_plans_before_any_download(hub: Hub, local: Path, context: Context) -> None:
    far, near = models.inspect(context, "acme/phi"), models.inspect(context, str(local))
    assert (far.name, far.parameters, far.layers) == ("acme/phi", near.parameters, near.layers)
    assert far.verdict == near.verdict
    planned = planned_file(context, "acme/phi", "BF16")
    from phitui.gguf.header import file_size

    assert planned.stat().st_size < file_size(preview(context, BuildRequest(str(local), "BF16")))  # no vocabulary
    assert [t.name for t in preview(context, BuildRequest("acme/phi", "BF16")).tensors] == [
        t.name for t in preview(context, BuildRequest(str(local), "BF16")).tensors
    ]
    with pytest.raises(UsageError, match="is a checkpoint"):
        planned_file(context, "acme/phi", "")
    assert all(stop <= remote.FIRST for name in weights(hub) for _, stop in hub.ranges(name))


def test_long_headers_are_fetched_in_two_steps(hub: Hub, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST", 100)
    source = open_source(context, "acme/phi")
    assert all(isinstance(extent, RemoteExtent) for tensor in source.tensors for extent in tensor.extents)
    assert [len(hub.ranges(name)) for name in weights(hub)] == [2, 2]


def test_an_interrupted_look_starts_over(hub: Hub, context: Context) -> None:
    hub.trouble.answers[f"/acme/phi/resolve/{COMMIT}/model-00002"] = (404, {"X-Error-Code": "EntryNotFound"})
    with pytest.raises(UsageError):
        remote.look(context, "acme/phi")
    hub.trouble.answers.clear()
    assert remote.look(context, "acme/phi").fetched > 0


def test_what_a_header_may_not_say(hub: Hub, context: Context) -> None:
    hub.files[weights(hub)[0]] = b"\xff" * 8 + bytes(1000)
    with pytest.raises(InvalidFile, match="its header is said to be"):
        open_source(context, "acme/phi")


def test_not_convertible(hub: Hub, context: Context) -> None:
    hub.files["config.json"] = b'{"architectures": ["Phi3SmallForCausalLM"]}'
    with pytest.raises(UnsupportedModel):
        open_source(context, "acme/phi")
    verdict = models.inspect(context, "acme/phi").verdict
    assert verdict is not None
    assert not verdict.ok


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"repo": "acme/phi", "commit": "abcdef0", "files": [{"name": "../x", "size": 1, "etag": ""}]}',
        '{"repo": "acme/phi", "commit": "abcdef0", "files": [{"name": "x", "size": -1, "etag": ""}]}',
        '{"repo": "acme/phi", "commit": "abcdef0", "files": [{"name": "x", "size": true, "etag": ""}]}',
        '{"repo": "http://x/y", "commit": "abcdef0", "files": [{"name": "x", "size": 1, "etag": ""}]}',
        '{"repo": "acme/phi", "commit": "../../x", "files": [{"name": "x", "size": 1, "etag": ""}]}',
        '{"repo": 1, "commit": "abcdef0", "files": [{}]}',
    ],
)
def test_manifests_that_phitui_never_wrote(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InvalidFile, match="is damaged"):
        read_manifest(tmp_path)


def test_a_busy_hub_is_asked_again_for_its_list(hub: Hub) -> None:
    hub.trouble.once = [("/api", 429, {"Retry-After": "0.1"}), ("/api", 503, {})]
    assert hub_module.repository("acme/phi").revision == COMMIT


def test_several_lookers_at_once(hub: Hub, context: Context) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: remote.look(context, "acme/phi"), range(4)))
    assert {one.directory for one in found} == {found[0].directory}
    assert len(open_source(context, found[0].pinned).tensors) > 0


def test_a_damaged_tokenizer_is_not_kept(hub: Hub, context: Context) -> None:
    hub.trouble.flip["tokenizer.model"] = 100
    with pytest.raises(InvalidFile, match="came damaged"):
        remote.look(context, "acme/phi")
    hub.trouble.flip.clear()
    assert remote.look(context, "acme/phi").fetched > 0


def test_weights_that_do_not_belong_to_the_config(hub: Hub, local: Path, context: Context) -> None:
    config = json.loads((local / "config.json").read_text())
    hub.files["config.json"] = json.dumps(config | {"intermediate_size": 999}).encode()
    with pytest.raises(InvalidFile, match="has shape"):
        open_source(context, "acme/phi")


def test_a_missing_shard(hub: Hub, context: Context) -> None:
    del hub.files["model-00002-of-00002.safetensors"]
    with pytest.raises(InvalidFile, match=r"model-00002-of-00002.safetensors is missing"):
        remote.look(context, "acme/phi")


def test_two_builds_at_once(hub: Hub, local: Path, tmp_path: Path, context: Context) -> None:
    from concurrent.futures import ThreadPoolExecutor

    remote.look(context, "acme/phi")
    hub.trouble.cut_all = 250_000
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(write, context, "acme/phi", "BF16", tmp_path / f"{n}.gguf") for n in range(2)]
        for job in jobs:
            job.result()
    write(context, str(local), "BF16", tmp_path / "built.gguf")
    assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()
    assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "built.gguf").read_bytes()
