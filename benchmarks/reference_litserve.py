"""The ranker of reference_server.py behind LitServe, as its documentation writes it.

    python benchmarks/reference_litserve.py BUNDLE [--trees 200]

One worker; no batching, which a processor gains nothing from. The one route ranks candidates, or the catalogue.
"""

from pathlib import Path

import litserve
from reference_server import Answer, Body, Ranker, free_port, options


class API(litserve.LitAPI):
    """Decode, rank, encode."""

    def __init__(self, folder: Path, trees: int):
        super().__init__(api_path="/v1/rank")
        self.folder, self.trees = folder, trees

    def setup(self, device: str) -> None:
        self.ranker = Ranker(self.folder, self.trees)

    def decode_request(self, request: dict) -> Body:
        return Body(**request)

    def predict(self, body: Body) -> Answer:
        return self.ranker(body)

    def encode_response(self, answer: Answer) -> dict:
        return answer.model_dump()


if __name__ == "__main__":
    asked = options(__doc__)
    server = litserve.LitServer(API(asked.bundle, asked.trees), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=free_port(), generate_client_file=False, log_level="warning")
