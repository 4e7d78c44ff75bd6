"""Suites of tasks, methods and seeds -> results; tables, figures, costs and the report."""
