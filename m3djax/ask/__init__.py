"""Questions to a model about scans, and the verb `ask`."""
