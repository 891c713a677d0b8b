"""Questions about scans, and the verb `ask`."""
