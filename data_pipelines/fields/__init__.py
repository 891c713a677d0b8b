"""Fields of a batch: what is made of the crop of a record, each kind in a file of its own."""
