"""Texts of reports and questions: sentences, tokenizers and token ids."""
