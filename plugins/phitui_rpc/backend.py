"""The devices of the workers that the configuration names."""

from __future__ import annotations

from phitui.api import Availability, BackendReport, Device, Worker, ask_workers, configured_workers
from phitui_rpc.library import INSTALL, has_rpc


class RpcBackend:
    """Devices on other machines. Every worker is asked at the same time; one that is not there costs 2.5 s in all."""

    name = "rpc"
    title = "RPC workers"
    remote = True

    def available(self) -> Availability:
        """Always: the report says what is there and what is missing."""
        return Availability()

    def probe(self) -> BackendReport:
        endpoints = configured_workers()
        workers = ask_workers(endpoints)
        refusals = [each.refusal() for each in workers if each.state != "ready"]
        warnings = [f"{refusal.message}; {refusal.hint}" for refusal in refusals]
        if endpoints and not has_rpc():
            warnings.append("the engine was built without RPC: it cannot use the workers of config.toml")
        return BackendReport(
            self.name,
            tuple(remote_devices(workers)),
            has_rpc(),
            bool(endpoints) or None,
            INSTALL,
            tuple((each.endpoint, row(each)) for each in workers),
            tuple(warnings),
        )


def remote_devices(workers: list[Worker]) -> list[Device]:
    """The devices under the names that ggml gives them: RPC0, RPC1, ... in the order of the workers."""
    usable = [(each, memory) for each in workers if each.state == "ready" for memory in each.memory]
    return [
        Device(f"RPC{number}", "rpc", "remote", worker.endpoint, total, free)
        for number, (worker, (free, total)) in enumerate(usable)
    ]


def row(worker: Worker) -> str:
    """One worker as people read it."""
    if worker.state != "ready":
        return worker.why
    count = len(worker.memory)
    return f"{count} device{'' if count == 1 else 's'}, RPC protocol {worker.version}"
