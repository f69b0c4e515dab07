"""The report: figures, claims, the page."""
