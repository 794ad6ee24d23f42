"""Bad inputs of a long command, which are reported together at its end."""

from collections.abc import Iterable

MAX_NAMED = 10  # messages in a report


class Problems:
    """Messages of the form `WHERE: WHAT; REMEDY`, of which the first `MAX_NAMED` are listed.

    Attributes:
        count: number of messages.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, messages: Iterable[str]) -> None:
        """Append messages."""
        for message in messages:
            self.count += 1
            if self.count <= MAX_NAMED:
                self._first.append(message)

    def report(self, summary: str, remedy: str) -> str:
        """Return one line about all of them; of a single message only the remedy is completed.

        Args:
            summary: how many there are of how many inputs.
            remedy: for all of them.
        """
        if self.count == 1:
            return f"{self._first[0]}; or {remedy}"
        # The messages' own remedies would hide the names in a long line.
        reasons = " | ".join(message.rpartition("; ")[0] or message for message in self._first)
        more = f" | and {self.count - MAX_NAMED:,} more" if self.count > MAX_NAMED else ""
        return f"{summary}: {reasons}{more}; correct them, or {remedy}"
