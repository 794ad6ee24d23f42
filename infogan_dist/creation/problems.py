"""Bad inputs of a long command, which are reported together at its end."""

MAX_NAMED = 10  # messages in a report


class Problems:
    """Messages of the form `WHERE: WHAT; REMEDY`, of which the first `MAX_NAMED` are listed.

    Attributes:
        count: number of messages.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, message: str) -> None:
        """Append a message."""
        self.count += 1
        if len(self._first) < MAX_NAMED:
            self._first.append(message)

    def merge(self, other: "Problems") -> None:
        """Append the messages of another object."""
        self.count += other.count
        self._first = (self._first + other._first)[:MAX_NAMED]

    def report(self, summary: str, remedy: str | None = None) -> str:
        """Return one line for all of them.

        Args:
            summary: how many there are of how many inputs.
            remedy: for all of them; None: none is needed.
        """
        if self.count == 1 and remedy is not None:
            return f"{self._first[0]}; or {remedy}"
        # The messages' own remedies would hide the names in a long line.
        reasons = " | ".join(message.rpartition("; ")[0] or message for message in self._first)
        more = f" | and {self.count - len(self._first):,} more" if self.count > len(self._first) else ""
        return f"{summary}: {reasons}{more}" + (f"; correct them, or {remedy}" if remedy else "")
