"""Recommendations over HTTP from a directory that `lares export` wrote: original ids in, ranked original ids out.

    python serve.py exported
    curl -d '{"history": ["50", "172"], "exclude": ["50"]}' http://127.0.0.1:8000

Needs onnxruntime and numpy; neither PyTorch nor lares_pl.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime


class Model:
    def __init__(self, folder):
        self.ids = json.loads(Path(folder, "items.json").read_text())
        self.index = {str(item): index for index, item in enumerate(self.ids) if index > 0}
        self.length = json.loads(Path(folder, "export.json").read_text())["max_length"]
        self.session = onnxruntime.InferenceSession(Path(folder, "model.onnx"))

    def recommend(self, history, exclude=(), **depth):  # depth=8, where it is an input
        if isinstance(history, str) or isinstance(exclude, str):
            raise TypeError("history and exclude are lists of ids")
        known = [self.index[str(item)] for item in history if str(item) in self.index][-self.length :]
        if not known:
            return []
        items = np.array([known + [0] * (self.length - len(known))])
        excluded = np.array([[0, *(self.index.get(str(item), 0) for item in exclude)]])
        inputs = {"items": items, "lengths": np.array([len(known)]), "excluded": excluded}
        inputs |= {name: np.array(value) for name, value in depth.items()}
        ranked, scores = self.session.run(["ranked_items", "scores"], inputs)
        found = np.isfinite(scores[0])
        pairs = zip(ranked[0][found].tolist(), scores[0][found].tolist(), strict=True)
        return [{"item": self.ids[index], "score": score} for index, score in pairs]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = 200, self.server.model.recommend(**asked)
        except (TypeError, ValueError) as error:  # no JSON, or not what is asked for
            status, answer = 400, str(error)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
    server.model = Model(sys.argv[1])
    server.serve_forever()
