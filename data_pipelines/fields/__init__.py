"""Fields of a batch: the arrays that are made from the crop of a record. One file per kind."""
