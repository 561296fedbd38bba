"""Pieces of the report that both tables use."""

from process import Row


def percent(share: float) -> str:
    """A share without decimals."""
    return f"{100 * share:.0f} %"


def cell(text: str) -> str:
    """Text that fits into a cell of a table."""
    return text.replace("|", "/").replace("\n", " ")


def difference(row: Row) -> str:
    """The difference in float32, and in float64 where that was measured."""
    text = f"{row['difference']:.0e}"
    return f"{text} (float64: {row['difference_float64']:.0e})" if "difference_float64" in row else text


def why(row: Row) -> str:
    """What stopped a model."""
    if "error" in row:
        error = row["error"]
        where = error.get("own") or error.get("at") or ""
        return f"{error['type']}: {error['message'][:240]}" + (f" ({where})" if where else "")
    if row["status"] == "nothing removed":
        return held(row)
    return f"difference {difference(row)}" if "difference" in row else ""


def held(row: Row) -> str:
    """What keeps the rest of a model's channels: operators, with their places."""
    reasons = [
        f"{percent(frozen['parameters'])} of the parameters: {frozen['reason']}"
        for frozen in row["frozen"]
        if frozen["parameters"] >= 0.05
    ]
    if row["inexact"]:
        reason = row["inexact_reasons"][0]["reason"]
        reasons.append(f"{row['inexact']} of {row['groups']} groups are inexact (most: {reason})")
    if not reasons and row["frozen"]:
        most = max(row["frozen"], key=lambda frozen: frozen["parameters"])
        reasons.append(f"many small ones, the largest with {percent(most['parameters'])}: {most['reason']}")
    return "; ".join(reasons)
