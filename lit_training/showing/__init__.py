"""Showing findings and curves to people: on the console, in a report, in W&B."""
