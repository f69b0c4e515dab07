# mypy: disable-error-code="misc"
"""LitServe: a LitAPI of one method a step, with its own batching where `max_batch` is over 1 (lightning.ai)."""

# No postponed annotations: LitServe reads the type of a request from `decode_request`.
from typing import Any

import litserve as ls
from fastapi import Request
from PIL import Image

from benchmarks.peers import work


class Classifier(ls.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.classifier, self.names = work.classifier(), work.labels()

    def decode_request(self, request: Request) -> Any:
        return self.classifier.pixels(Image.open(request["image"].file))

    def predict(self, pixels: Any) -> Any:
        # With batching LitServe gives a batch, else one input.
        return self.classifier.run(pixels) if pixels.ndim == 4 else self.classifier.run(pixels[None])[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return work.answer(output, self.names)


if __name__ == "__main__":
    wanted = work.job()
    api = Classifier(max_batch_size=wanted["max_batch"], batch_timeout=wanted["delay_s"], api_path="/classify")
    server = ls.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=wanted["port"], generate_client_file=False, log_level="warning")
