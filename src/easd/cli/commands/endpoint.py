"""`easd eval --endpoint`: the same grid, decoded by a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from easd.cli.commands.evaluate import load_tasks, watch
from easd.diagnose.calibration_file import CalibrationFile
from easd.errors import ConfigError
from easd.evaluate.endpoint.evaluate import EndpointEvaluation
from easd.evaluate.endpoint.settings import EndpointStudy


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSession:
    """One evaluation of servers; the attributes are those of `easd.cli.commands.evaluate.Study`."""

    config: EndpointStudy
    out: Path
    allow_code_execution: bool = False
    artefact: CalibrationFile | None = None
    force: bool = False
    quiet: bool = False

    def run(self) -> None:
        """Has the servers decode what is missing and prints the accuracies.

        Raises:
            EasdError: Servers, tasks, settings or the folder do not do; what is finished stays.
        """
        if self.artefact is not None and not self.force:
            raise ConfigError(
                "a calibration is checked against the pair's weights, which an endpoint does not "
                "tell; add --force if it is of the same pair and temperature"
            )
        console = Console(stderr=True, quiet=self.quiet)
        tasks = load_tasks(self.config, console, allow_code_execution=self.allow_code_execution)
        with console.status("asking the server"):
            evaluation = EndpointEvaluation(
                *(self.config, tasks, self.out),
                on_wait=lambda why: console.print(Text(why, "yellow"), soft_wrap=True),
            )
        watch(evaluation, console)
        console.print(Text(f"the run is in {self.out}; next: easd report {self.out}"))
