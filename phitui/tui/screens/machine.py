"""Machine: what this machine has, what the engine can use of it, and what is plugged in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widget import Widget

from phitui.errors import PhituiError
from phitui.tui import format as show
from phitui.tui.place import Place
from phitui.tui.text import styled
from phitui.tui.widgets.page import Hang, Page, Part, bullet, facts

Parts = list[Part]


class Machine(Place):
    NAME = "machine"
    CSS_PATH = "machine.tcss"
    ABOUT = (
        "The doctor's report: what was found first, each with the command that mends it (y copies it, f runs it as a "
        "job); devices, their memory and its speed; backends compiled into the engine; plugins with what they offer, "
        "and those that failed with the reason."
    )
    BINDINGS: ClassVar = [
        Binding("r", "reload", "examine again"),
        Binding("f", "mend", "mend"),
        Binding("b", "bandwidth", "measure memory"),
        Binding("d", "traces", "tracebacks"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._report: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
        self._traces = False

    def body(self) -> Iterator[Widget]:
        with VerticalScroll(id="report"):
            yield Page(id="text")

    def on_mount(self) -> None:
        self.query_one("#report").focus()
        self._examine("examining the machine …", self.app.door.doctor)

    def action_reload(self) -> None:
        """Examine the machine anew: the engine or a driver may have been installed meanwhile."""
        self._examine("examining the machine …", lambda: self.app.door.doctor(fresh=True))

    def action_bandwidth(self) -> None:
        """Measure how fast the memory is, which takes a second or two, and show the report again."""

        def measured() -> Mapping[str, Any]:
            for failure in self.app.door.measure_bandwidth():
                self.app.call_from_thread(self.app.notify, failure, severity="warning", markup=False)
            return self.app.door.doctor()

        self._examine("measuring how fast the memory is …", measured)

    def _examine(self, saying: str, doctor: Callable[[], Mapping[str, Any]]) -> None:
        self.query_one(Page).show([styled(saying, "$muted")])
        self.act(
            lambda: (doctor(), self.app.door.plugins()),
            self._arrived,
            group="doctor",
            otherwise=self._refused,
        )

    def _arrived(self, report: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
        self._report = report
        self._show()

    def _refused(self, error: PhituiError) -> None:
        self.query_one(Page).show([styled(error.message, "$error"), styled(error.hint, "$muted")])

    def _show(self) -> None:
        if self._report is not None:
            report, plugins = self._report
            parts: Parts = [
                *_findings(report),
                *_engine(report),
                *_devices(report),
                *_backends(report),
                *_plugins(plugins, self._traces),
            ]
            self.query_one(Page).show(parts)

    def action_traces(self) -> None:
        """Show or fold the tracebacks of failed plugins."""
        self._traces = not self._traces
        self._show()

    def action_mend(self) -> None:
        """Show the line that solves the first finding, and run it as a job if the answer is yes."""
        self.act(self.app.door.remedy, self._offer, group="remedy")

    def _offer(self, remedy: Any) -> None:
        from phitui.tui.widgets.dialogs import Ask

        if remedy is None:
            self.app.notify("the engine has what this machine needs", title="nothing to install", markup=False)
            return
        ways = "\nif that fails:\n".join(f"{way['line']}\n({way['note']})" for way in remedy.ways)
        ask = Ask("run this?", f"{remedy.what}\n\n{ways}", "run it as a job", "not now")
        self.app.push_screen(ask, lambda yes: self._mend(remedy) if yes else None)

    def _mend(self, remedy: Any) -> None:
        self.act(lambda: self.app.door.start_remedy(remedy), self._started, group="remedy")

    def _started(self, job: Any) -> None:
        self.app.read_jobs()
        self.app.notify(job.title, title="job started: r examines again when it is done", timeout=5, markup=False)

    def command_line(self) -> str:
        found = self._report[0].get("problems", ()) if self._report else ()
        fixes = [finding["do"] for finding in found if finding.get("do")]
        return fixes[0] if fixes else "phitui doctor"


def _title(text: str) -> Parts:
    return ["", styled(text, "$primary bold")]


def _findings(report: Mapping[str, Any]) -> Parts:
    found = report.get("problems", ())
    if not found:
        return ["", styled("✓ no problems found", "$success")]
    parts: Parts = _title("findings")
    for finding in found:
        hint = finding.get("level") == "hint"
        parts.append(bullet("·" if hint else "▲", finding["what"], mark_style="$muted" if hint else "$warning"))
        if finding.get("why"):
            parts.append(Hang(styled("  "), styled(finding["why"], "$muted")))
        parts += [Hang(styled("  needs first: ", "$warning"), styled(need)) for need in finding.get("needs", ())]
        if finding.get("do"):
            parts.append(Hang(styled("  "), styled(finding["do"], "$accent")))
        if finding.get("note"):
            parts.append(Hang(styled("  "), styled(f"({finding['note']})", "$muted")))
    return parts


def _engine(report: Mapping[str, Any]) -> Parts:
    engine, phitui = report.get("engine"), report.get("phitui", {})
    system = f"{phitui.get('system', '')} {phitui.get('machine', '')}, Python {phitui.get('python', '')}"
    rows = [("phitui", f"{phitui.get('version', '')} on {system}")]
    if engine and engine.get("trouble"):
        rows.append(("engine", f"{engine['name']} {engine['version']} does not work"))
    elif engine:
        rows.append(("engine", f"{engine['name']} {engine['version']}"))
        rows.append(("compiled in", ", ".join(engine["backends"])))
        rows += [(name, " ".join(values)) for name, values in engine["features"].items()]
    for offer in report.get("engines", ()):
        if not offer["ok"]:
            rows.append((offer["name"], f"not here: {offer['reason']}; {offer['hint']}"))
    return [*_title("engine"), *facts(rows)]


def _devices(report: Mapping[str, Any]) -> Parts:
    parts = _title("devices")
    speeds = {speed["device"]: speed for speed in report.get("bandwidth", ())}
    for device in report.get("devices", ()):
        used = 1 - device["free"] / device["total"] if device["total"] else 0.0
        name = "RAM" if device["kind"] == "cpu" else device["name"]
        parts.append(
            styled(name[:11].ljust(12), "bold")
            + styled(show.bar(used, 20), "$primary")
            + styled(f"  {show.size(device['free'])} of {show.size(device['total'])} free ({device['source']})")
        )
        speed = speeds.get(device["name"])
        about = f", reads {speed['bytes_per_second'] / 1e9:.1f} GB/s (measured)" if speed else ""
        parts.append(styled(" " * 12 + device["description"] + about, "$muted"))
    return parts


def _backends(report: Mapping[str, Any]) -> Parts:
    parts = _title("backends")
    presence = {True: "hardware is here", False: "no such hardware", None: "hardware unknown"}
    for backend in report.get("backends", ()):
        mark = styled("✓ ", "$success") if backend["compiled_in"] else styled("– ", "$muted")
        compiled = "compiled in" if backend["compiled_in"] else "not compiled in"
        style = "" if backend["compiled_in"] or backend["present"] else "$muted"
        state = styled(f"{compiled}, {presence[backend['present']]}", style)
        parts.append(mark + styled(backend["title"][:22].ljust(24), style) + state)
        if backend["present"]:
            parts += [
                Hang(styled(f"    {f['what']}: ", "$muted"), styled(f["value"], "$muted")) for f in backend["facts"]
            ]
            if backend["install"] and not backend["compiled_in"]:
                parts.append(Hang(styled("    "), styled(backend["install"], "$accent")))
    return parts


def _plugins(report: Mapping[str, Any], traces: bool) -> Parts:
    parts = _title("plugins")
    for plugin in report["plugins"]:
        bad = [offer for offer in plugin["offers"] if not offer["ok"]]
        names = ", ".join(dict.fromkeys(offer["name"] for offer in plugin["offers"]))
        mark = styled("▲ ", "$warning") if bad else styled("✓ ", "$success")
        parts.append(mark + styled(f"{plugin['name']} {plugin['version']}".ljust(22)) + styled(names, "$muted"))
        parts += [Hang(styled("    "), styled(f"{o['name']}: {o['reason']}; {o['hint']}", "$warning")) for o in bad]
    for failure in report["failures"]:
        stage = styled(f" ({failure['stage']})", "$muted")
        parts.append(styled("✗ ", "$error") + styled(failure["plugin"], "bold") + stage)
        parts.append(Hang(styled("    "), styled(failure["error"], "$error")))
        if traces and failure["trace"]:
            parts.append(failure["trace"].rstrip())
    return parts
