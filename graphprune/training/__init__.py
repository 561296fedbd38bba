"""The training: a frozen teacher, students, what they learn from, and how their channels get to zero."""
