"""Options for the choice of the next token."""

from __future__ import annotations

import dataclasses

from data_pipelines.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of `generate`, with Hugging Face's names, meanings and order of application.

    Attributes:
      max_new_tokens: largest number of tokens of an answer.
      temperature: divisor of the logits; 0: always the best token (greedy).
      top_k: number of best tokens to choose from; 0: all tokens.
      top_p: total probability of the best tokens to choose from.
      repetition_penalty: above 1, it makes tokens of prompt and answer less likely (arXiv
        1909.05858).
      stop: texts that end an answer; the answer does not include them.
      seed: seed of the random numbers.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range."""
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1,
            "temperature": self.temperature < 0,
            "top_k": self.top_k < 0,
            "top_p": not 0 < self.top_p <= 1,
            "repetition_penalty": self.repetition_penalty <= 0,
            "stop": not all(self.stop),
        }
        for name, bad in wrong.items():
            if bad:
                raise ConfigError(f"{name}={getattr(self, name)!r} is out of range.")
