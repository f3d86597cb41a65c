"""Explain a folder with numpy alone, in a process that kills itself at a given file operation.

    python interrupted.py IN OUT MOMENT

Prints how many file operations there were. MOMENT 0 kills at none.
"""

import os
import sys
from pathlib import Path

import numpy as np

from embedcam.batch.files import DrawOptions, explain_files
from embedcam.data.preprocess import Preprocess
from embedcam.explain.explanation import Explanation


class Brightness:
    """Explains images by how bright they are, and says of each where it lay in its batch."""

    preprocess = Preprocess((12, 16))

    def __call__(self, images):
        images = np.asarray(images)
        places = np.arange(len(images), dtype=np.float32) + 10 * len(images)
        known = {"clusters": np.zeros(len(images), np.int64), "distances": places}
        return Explanation.of((images**2).mean(axis=1), typicality=places / 1000, anomaly=places / 30, **known)

    def labels_of(self, cluster):
        return [("bright", 7)]


def main():
    given, out, moment = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        # The files that are written, renamed and removed; not those that are read.
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove"):
            seen += 1
            if seen == moment:
                os._exit(137)  # without clean-up, as when it is killed

    sys.addaudithook(watch)
    explain_files(Brightness(), [given], out, DrawOptions(boxes=True), batch_size=4, concurrency=2, resume=True)
    print(seen)


if __name__ == "__main__":
    main()
