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
    return f"difference {difference(row)}" if "difference" in row else ""
