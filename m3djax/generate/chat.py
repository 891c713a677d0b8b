"""The verb `chat`: a conversation with a language model in the terminal."""

from __future__ import annotations

import dataclasses

from data_pipelines.errors import ConfigError, DataError
from data_pipelines.text import prompts
from m3djax.convert import pretrained
from m3djax.generate import terminal
from m3djax.generate.generator import Generator
from m3djax.generate.options import ChatOptions
from m3djax.mesh import sharding

_HELP = "(an empty line or ctrl-D ends, /new starts a new conversation)"


@dataclasses.dataclass(frozen=True)
class Chat(ChatOptions):
    """The verb `chat` with its options."""

    def run(self) -> int:
        """Reads questions from standard input until it ends; returns the exit status.

        Raises:
          DataError: the model cannot be read, or has no tokenizer.
        """
        dtype = terminal.chosen(self.dtype)
        mesh = sharding.make_mesh((1, 1, -1))
        loaded = pretrained.load(self.model, mesh, dtype=dtype)
        if loaded.tokenizer is None:
            raise DataError(self.model, "it has no tokenizer", "put its tokenizer.json there")
        generator = Generator(
            loaded.model,
            loaded.params["llm"],
            tokenizer=loaded.tokenizer,
            eos_ids=loaded.eos_ids,
            mesh=mesh,
        )
        print(f"{self.model}: {loaded.model.num_layers} layers, {dtype}. {_HELP}")
        start = [{"role": "system", "content": self.system}] if self.system else []
        said = list(start)

        def reply(question: str) -> None:
            if question == "/new":
                said[:] = start
                return
            said.append({"role": "user", "content": question})
            try:
                said.append({"role": "assistant", "content": self._answer(generator, said)})
            except ConfigError:  # such as a question that is too long: continue without it
                said.pop()
                raise

        terminal.converse(reply, "chat")
        return 0

    def _answer(self, generator: Generator, said: list[prompts.Message]) -> str:
        tokenizer = generator.tokenizer
        if self.plain:
            prompt = prompts.plain(tokenizer, said[-1]["content"])
        else:
            prompt = prompts.chat(tokenizer, said)
        [answer] = generator(
            [prompt], self.sampling, on_text=lambda _row, text: terminal.stream(text)
        )
        terminal.end(answer.ended)
        return answer.text
