"""The page of a scorecard, in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from infogan_dist.scores.score import format_protocol

# The scores of the first table, of which those that exist are listed; `{code}` is a categorical code.
MAIN_SCORES = (
    "accuracy_test_hungarian_recalibrated",
    "accuracy_test_hungarian",
    "accuracy_train_hungarian_recalibrated",
    "accuracy_train_hungarian",
    "bound_{code}",
    "fid",
    "fid_of_test_images",
    "kid",
    "precision",
    "recall",
    "control_slant_and_width",
    "mig",
    "dci_disentanglement",
)
MAIN_COUNT = 10
# Entries of a protocol that scores have in common. Scores with equal entries form a group, which states them
# once.
COMMON_ENTRIES = (
    "split", "samples", "real_images", "sampling", "images", "generator", "weights", "batch_norm", "features",
    "factors", "statistic",
)  # fmt: skip
# Entries of a protocol that were measured for one model, so that they do not belong to its description.
MEASURED_ENTRIES = ("interval_95", "interval", "deviation")
HEADER = ("score", "mean", "95% interval", "std", "worst", "by seed")
MISSING = "-"


def format_markdown(card: dict[str, Any]) -> str:
    """Return a scorecard as a page: its main scores, then all scores by groups with the same protocol."""
    categorical = [
        key.split(".")[1]
        for key, value in card["config"].items()
        if key.startswith("codes.") and key.endswith(".kind") and value == "categorical"
    ]
    main = _main_scores(list(card["scores"]), categorical)
    lines = [f"# {card['name']}", "", _summary(card)]
    lines += [
        f"Mixed records: {name} is {', '.join(f'{v} (seeds {_join(s)})' for v, s in seeds.items())}."
        for name, seeds in card.get("mixed", {}).items()
    ]
    lines += ["", "## Main scores", "", *markdown_table(HEADER, [_row(card, name) for name in main])]
    lines += ["", "## All scores"]
    for names in _groups(card):
        lines += ["", *_section(card, names)]
    lines += [f"\nNot computed: {name}, which {reason}." for name, reason in card["left_out"].items()]
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, with `|` in its cells escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return [f"| {' | '.join(line)} |" for line in lines]


def _summary(card: dict[str, Any]) -> str:
    seeds, machine = card["seeds"], card["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    known = [seconds for seconds in card["wall_time"]["per_seed"] if seconds is not None]
    time = f"{sum(known) / 3600 / len(known):.1f} h of training a seed" if known else "trained"
    return (
        f"{len(seeds)} seeds ({_join(seeds)}), {card['steps']:,} steps each, {time} on {machine['cores']} "
        f"core(s), {gpus}; infogan_dist {card['version']}, torch {machine['torch']}. Intervals are those "
        "of the mean over seeds (Student's t); with few seeds they may exceed the range of a score."
    )


def _main_scores(names: list[str], categorical: list[str]) -> list[str]:
    """Return the first `MAIN_COUNT` scores of `MAIN_SCORES`; with several variables, those of each.

    Accuracies on training images are left out where there are those on held-out images.
    """
    wanted = [w.format(code=code) for w in MAIN_SCORES for code in (categorical if "{" in w else [""])]
    main = [name for w in wanted for name in names if name == w or name.endswith(f"/{w}")]
    return [n for n in main if n.replace("_train_", "_test_") not in names or "_train_" not in n][:MAIN_COUNT]


def _description(card: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the protocol of a score without tables and without what was measured for one model."""
    protocol = card["protocol"][name].items()
    return {k: v for k, v in protocol if k not in MEASURED_ENTRIES and not isinstance(v, dict)}


def _groups(card: dict[str, Any]) -> list[list[str]]:
    """Return the names of the scores, those with equal common entries of the protocol together."""
    groups: dict[str, list[str]] = {}
    for name in card["scores"]:
        description = _description(card, name)
        key = str([(entry, description.get(entry)) for entry in COMMON_ENTRIES])
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _section(card: dict[str, Any], names: list[str]) -> list[str]:
    """Return the lines of a group: a heading, the common protocol, and a table."""
    descriptions = [_description(card, name) for name in names]
    common = {k: v for k, v in descriptions[0].items() if k in COMMON_ENTRIES}
    own = [format_protocol({k: v for k, v in d.items() if k not in COMMON_ENTRIES}) for d in descriptions]
    kinds = dict.fromkeys(name.rpartition("/")[2].split("_")[0] for name in names)
    details = [str(common["split"])] if "split" in common else []
    details += ["recalibrated"] if str(common.get("batch_norm", "")).startswith("recalibrated") else []
    lines = [f"### {', '.join(kinds)}{f' ({_join(details)})' if details else ''}", ""]
    if common:
        lines += [f"{format_protocol(common)}.", ""]
    rows = [_row(card, name) for name in names]
    if not any(own):
        return lines + markdown_table(HEADER, rows)
    return lines + markdown_table((*HEADER, "protocol"), [[*r, o] for r, o in zip(rows, own, strict=True)])


def _row(card: dict[str, Any], name: str) -> list[str]:
    score = card["scores"][name]
    interval = score.get("interval_95")
    return [
        name,
        _number(score["mean"]),
        MISSING if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
        _number(score["std"]),
        _number(score["worst"]),
        " ".join(map(_number, score["per_seed"])),
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
