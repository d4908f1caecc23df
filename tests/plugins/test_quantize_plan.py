"""What the quantizer says before any work: schemes, types, substitutions, and clear refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("phitui_quantize")
from phitui_quantize import ask, library
from phitui_quantize.options import QuantizeOptions
from phitui_quantize.quantizer import LlamaQuantizer

from phitui.domain.tensors import FilePlan, InlineExtent, PlannedTensor, Source, SourceTensor, TensorType, Value
from phitui.errors import InvalidFile, PhituiError, Unavailable, UsageError

needs_llama = pytest.mark.skipif(not library.available().ok, reason="llama-cpp-python is not installed")


def source(width: int = 256, stored: TensorType = TensorType.BF16) -> Source:
    """One layer of a phi3 model; the data is never read."""
    counts = {
        "context_length": 4096,
        "rope.scaling.original_context_length": 4096,
        "embedding_length": width,
        "feed_forward_length": 512,
        "block_count": 1,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "rope.dimension_count": width // 4,
        "attention.sliding_window": 0,
    }
    metadata = {"general.architecture": Value.string("phi3")}
    metadata |= {f"phi3.{key}": Value.u32(value) for key, value in counts.items()}
    metadata["phi3.attention.layer_norm_rms_epsilon"] = Value.f32(1e-5)
    shapes = {
        "token_embd": (width, 64),
        "output": (width, 64),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.attn_qkv": (width, 3 * width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_norm": (width,),
        "blk.0.ffn_up": (width, 1024),
        "blk.0.ffn_down": (512, width),
    }
    tensors = [
        SourceTensor(f"{name}.weight", shape, stored if len(shape) > 1 else TensorType.F32, ())
        for name, shape in shapes.items()
    ]
    return Source(Path("tiny"), "phi3", metadata, tuple(tensors))


def plan(scheme: str, width: int = 256, stored: TensorType = TensorType.BF16, **values: Any) -> FilePlan:
    return LlamaQuantizer().plan(source(width, stored), [scheme], QuantizeOptions(**values))[scheme]


def types(made: FilePlan) -> dict[str, str]:
    return {tensor.name.removesuffix(".weight"): tensor.type.name for tensor in made.tensors}


@needs_llama
class TestSchemes:
    def test_all_of_the_library_but_plain_floats(self) -> None:
        schemes = {scheme.name: scheme for scheme in LlamaQuantizer().schemes()}
        assert {"Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K", "IQ2_XXS", "IQ1_S", "TQ1_0"} <= set(schemes)
        assert not {"F32", "F16", "BF16", "GUESSED"} & set(schemes)

    def test_bits_are_those_of_a_phi(self) -> None:
        schemes = {scheme.name: scheme for scheme in LlamaQuantizer().schemes()}
        assert schemes["Q8_0"].bits == pytest.approx(8.5, abs=0.02)
        assert 4.8 < schemes["Q4_K_M"].bits < 5.1
        assert 1.6 < schemes["IQ1_S"].bits < 2.1

    def test_need_of_an_imatrix(self) -> None:
        needs = {scheme.name for scheme in LlamaQuantizer().schemes() if scheme.needs_imatrix}
        assert {"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M", "Q2_K_S"} <= needs
        assert not {"Q4_K_M", "Q2_K", "IQ4_XS", "Q8_0", "TQ1_0"} & needs

    def test_native_code_stays_out_of_this_process(self, home: Path) -> None:
        code = (
            "import sys; from phitui_quantize.quantizer import LlamaQuantizer; LlamaQuantizer().schemes();"
            "assert not [n for n in sys.modules if n.startswith('llama_cpp')];"
            "from pathlib import Path; maps = Path('/proc/self/maps');"
            "assert not maps.exists() or 'libggml' not in maps.read_text()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@needs_llama
class TestPlan:
    def test_types_are_llama_cpps(self) -> None:
        assert types(plan("Q4_K_M")) == {
            "token_embd": "Q4_K",
            "output": "Q6_K",
            "output_norm": "F32",
            "blk.0.attn_norm": "F32",
            "blk.0.attn_qkv": "Q6_K",
            "blk.0.attn_output": "Q4_K",
            "blk.0.ffn_norm": "F32",
            "blk.0.ffn_up": "Q4_K",
            "blk.0.ffn_down": "Q6_K",
        }

    def test_keys_that_the_plan_sets(self) -> None:
        keys = plan("Q4_K_M").metadata
        assert keys["general.file_type"].value == 15
        assert keys["general.quantization_version"].value == 2

    def test_substitutions_are_shown(self) -> None:
        made = plan("Q4_K_M", width=288)
        shown = {t.name: (t.wanted.name if t.wanted else "", t.type.name) for t in made.substitutions}
        assert shown["blk.0.ffn_up.weight"] == ("Q4_K", "Q5_0")
        assert shown["blk.0.attn_qkv.weight"] == ("Q6_K", "Q8_0")
        assert "blk.0.ffn_down.weight" not in shown
        assert not made.refused

    def test_substitutions_can_be_refused(self) -> None:
        made = plan("Q4_K_M", width=288, substitutions=False)
        assert "--no-substitutions" in made.refused
        with pytest.raises(UsageError, match="substitute"):
            LlamaQuantizer().encoder(made, QuantizeOptions())

    def test_a_scheme_that_llama_cpp_refuses_for_a_model(self) -> None:
        made = plan("Q1_0", width=288)
        assert "no tensor type fallback" in made.refused
        assert made.tensors == ()

    def test_imatrix_schemes_are_planned_exactly_and_not_encoded(self) -> None:
        made = plan("IQ2_XXS")
        assert "blk.0.ffn_up.weight" in made.needs_imatrix
        assert "token_embd.weight" not in made.needs_imatrix
        assert made.data_size > 0
        with pytest.raises(UsageError, match="importance matrix"):
            LlamaQuantizer().encoder(made, QuantizeOptions())

    def test_a_type_that_ggml_aborts_on_needs_an_imatrix_anywhere(self) -> None:
        assert plan("Q4_0", token_embedding_type="iq2_xxs").needs_imatrix == ("token_embd.weight",)

    def test_pure(self) -> None:
        assert set(types(plan("Q4_K_M", pure=True)).values()) == {"Q4_K", "F32"}

    def test_types_of_embeddings_and_output(self) -> None:
        made = types(plan("Q4_0", token_embedding_type="q5_0", output_tensor_type="Q8_0"))
        assert (made["token_embd"], made["output"]) == ("Q5_0", "Q8_0")

    def test_a_row_that_cannot_be_of_the_type(self) -> None:
        assert "cannot be Q6_K" in plan("Q4_0", width=288, token_embedding_type="Q6_K").refused

    def test_override_that_matches_nothing_is_said(self) -> None:
        assert any("matches no tensor" in note for note in plan("Q4_0", override=("ffn_dwon=Q6_K",)).notes)

    def test_override_that_llama_cpp_cannot_read(self) -> None:
        """Python knows look-behind, C++ does not."""
        assert "Q4_0" in plan("Q4_0", override=("(?<=ffn_)down=Q6_K",)).refused

    @pytest.mark.parametrize("text", ["ffn_down", "=Q6_K", "ffn_down=Q9_X", "ffn_(=Q6_K"])
    def test_overrides_that_are_none(self, text: str) -> None:
        with pytest.raises(UsageError, match="--override"):
            plan("Q4_0", override=(text,))

    def test_type_that_is_none(self) -> None:
        with pytest.raises(UsageError, match="--token-embedding-type"):
            plan("Q4_0", token_embedding_type="Q9_X")

    def test_unknown_scheme(self) -> None:
        with pytest.raises(UsageError, match="Q9_X"):
            plan("Q9_X")

    def test_requantizing_is_refused_unless_wanted(self) -> None:
        assert "--allow-requantize" in plan("Q4_0", stored=TensorType.Q8_0).refused
        assert plan("Q4_0", stored=TensorType.Q8_0, allow_requantize=True).refused == ""

    def test_same_type_is_no_requantizing(self) -> None:
        assert plan("Q8_0", stored=TensorType.Q8_0).refused == ""

    def test_unknown_architecture(self) -> None:
        strange = source()
        strange = Source(strange.origin, "x", {"general.architecture": Value.string("x")}, strange.tensors)
        made = LlamaQuantizer().plan(strange, ["Q4_0"], QuantizeOptions())["Q4_0"]
        assert "unknown model architecture" in made.refused


class TestChild:
    @pytest.fixture
    def child(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Put a shell script in the child's place."""

        def place(script: str) -> None:
            fake = tmp_path / "python"
            fake.write_text(f"#!/bin/sh\n{script}\n")
            fake.chmod(0o755)
            monkeypatch.setattr(ask.sys, "executable", str(fake))

        return place

    def test_a_native_crash_is_an_error_with_its_last_words(self, child: Any) -> None:
        child("echo 'GGML_ASSERT(false) failed' >&2; kill -ABRT $$")
        with pytest.raises(PhituiError, match=r"signal 6.*GGML_ASSERT"):
            plan("Q4_0")

    def test_nonsense_instead_of_a_reply(self, child: Any) -> None:
        child("echo hello")
        with pytest.raises(PhituiError, match="failed when asked"):
            plan("Q4_0")

    def test_answers_that_miss_a_tensor(self, child: Any) -> None:
        child(
            """echo '{"schemes": {"Q4_0": {"file_type": 2, "tensors": {"x": ["q4_0", null]}, """
            """"needs_imatrix": [], "error": ""}}}'"""
        )
        with pytest.raises(PhituiError, match="did not answer for"):
            plan("Q4_0")

    def test_types_that_phitui_does_not_know(self, child: Any) -> None:
        child(
            """echo '{"schemes": {"Q4_0": {"file_type": 2, "tensors": {"x": ["q7_z", null]}, """
            """"needs_imatrix": [], "error": ""}}}'"""
        )
        with pytest.raises(InvalidFile, match="Q7_Z"):
            plan("Q4_0")


class TestLibrary:
    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "find_spec", lambda name: None)
        state = library.available()
        assert not state.ok
        assert "llama-cpp-python" in state.reason
        assert "phitui[llama]" in state.hint

    def test_a_build_without_its_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
        with pytest.raises(Unavailable, match="libggml-base"):
            library.ggml_base()

    def test_the_name_that_libllama_links_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        linux = ["libggml-base.so", "libggml-base.so.0", "libggml-base.so.0.25.3"]
        mac = ["libggml-base.dylib", "libggml-base.0.dylib", "libggml-base.0.25.3.dylib"]
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
        for name in mac if sys.platform == "darwin" else linux:
            (tmp_path / name).touch()
        assert library.ggml_base().name == ("libggml-base.0.dylib" if sys.platform == "darwin" else "libggml-base.so.0")


@needs_llama
class TestEncoder:
    def test_a_value_that_is_not_finite_names_its_tensor(self) -> None:
        """The writer refuses such values before they come here, unless it was told to let them through."""
        import numpy as np

        made = plan("Q4_K_M")
        encoder = LlamaQuantizer().encoder(made, QuantizeOptions())
        rows = np.zeros((2, 256), dtype=np.float32)
        rows[1, 7] = np.inf
        planned = next(tensor for tensor in made.tensors if "ffn_up" in tensor.name)
        with pytest.raises(InvalidFile, match=r"blk.0.ffn_up.weight: rows 40 to 42 .* not all finite") as caught:
            encoder(planned, 40, rows)
        assert caught.value.hint.endswith("--override 'blk.0.ffn_up.weight=BF16'")

    def test_each_expert_has_weights_of_its_own(self) -> None:
        import numpy as np
        from phitui_quantize.encode import RowEncoder

        rng = np.random.default_rng(0)
        values = rng.normal(size=(6, 256)).astype(np.float32)
        weights = rng.random(3 * 256).astype(np.float32)
        shape = (256, 2, 3)
        held = SourceTensor("blk.0.ffn_up_exps.weight", shape, TensorType.F32, (InlineExtent(values.tobytes()),))
        planned = PlannedTensor(held.name, shape, TensorType.Q4_K, 0, held)
        whole = bytes(RowEncoder({held.name: weights})(planned, 0, values))
        parts = b""
        for expert in range(3):
            one = PlannedTensor("one", (256, 2), TensorType.Q4_K, 0, SourceTensor("one", (256, 2), TensorType.F32, ()))
            slice_ = np.ascontiguousarray(weights[expert * 256 : (expert + 1) * 256])
            parts += bytes(RowEncoder({"one": slice_})(one, 0, values[2 * expert : 2 * expert + 2]))
        assert whole == parts
        assert whole != bytes(RowEncoder()(planned, 0, values))
