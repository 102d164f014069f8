"""What a check says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeserve import exits
from edgeserve.log import Log


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something amiss and what to do about it; `exit_code` OK makes it a warning."""

    problem: str
    remedy: str
    exit_code: int = exits.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check: its name, what it saw, and what is amiss."""

    check: str
    seen: Mapping[str, object]
    findings: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the first finding that is no warning, else OK."""
        return next((finding.exit_code for finding in self.findings if finding.exit_code), exits.OK)

    def write(self, log: Log) -> None:
        """Log one line for each finding, and one for what was seen if nothing forbids to start."""
        for finding in self.findings:
            if finding.exit_code:
                log.error(
                    "preflight",
                    check=self.check,
                    problem=finding.problem,
                    remedy=finding.remedy,
                    code=finding.exit_code,
                )
            else:
                log.warning("preflight", check=self.check, problem=finding.problem, remedy=finding.remedy)
        if self.seen and not self.exit_code:
            log.info("preflight", check=self.check, **self.seen)
