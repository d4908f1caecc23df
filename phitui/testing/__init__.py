"""The kit for plugin authors (and for phitui's own tests): contract classes, a fake engine, tiny Phi checkpoints.

    from phitui.testing.contracts import ExporterContract

    class TestMyExporter(ExporterContract):
        @pytest.fixture
        def offer(self):
            return MyExporter()
"""
