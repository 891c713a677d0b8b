"""Text of reports: sentences, tokenizers, token ids."""
