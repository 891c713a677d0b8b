"""Decoder-only language models: Llama, Phi-3 and Qwen."""
