import subprocess
import sys


def test_seeing_needs_neither_torch_nor_the_training_libraries():
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'matplotlib', 'jinja2', 'sklearn', 'faiss']))\n"
        "import embedcam.show, embedcam.show.curve, embedcam.show.report\n"
        "print(sorted(embedcam.show.__all__))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Box', 'colorize', 'draw_boxes', 'find_boxes', 'grid', 'overlay']"
