"""Measurements of parts of the system; they report, and no test asserts their times."""
